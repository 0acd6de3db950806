"""Whether `fathom bench serve` and `vllm bench serve` tell the same of one server.

    python bench/agreement.py --vllm PYTHON --model DIR [--repeats 5] [--output FILE]
                              [-- FLAGS OF fathom serve]

One `fathom serve` of the checkpoint; then the two clients in turns, with the same flags and so the
same lengths and rate; each draws its own prompts. The rate is below what the server can do, or
figures would tell of its queue. `make bench-peers` leaves a vLLM in an environment of its own below
its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fathom.commands.bench_facts import machine_facts

ROOT = Path(__file__).resolve().parents[1]
FIELDS = (
    *(f"{kind}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for kind in ("mean", "p99")),
    "output_throughput",
    "total_output_tokens",
)
NAME = "model"
# `vllm bench serve` without the command around it, which the CPU build's other name breaks.
_VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
_START_S = 300.0
_RUN_S = 600.0


def flags(url: str, model: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """What both clients are given."""
    return [
        *("--backend", "openai", "--base-url", url, "--model", str(model)),
        *("--served-model-name", NAME, "--tokenizer", str(model), "--dataset-name", "random"),
        *("--random-input-len", "128", "--random-output-len", "48", "--ignore-eos"),
        *("--num-prompts", str(options.num_prompts), "--request-rate", str(options.rate)),
        *("--seed", str(seed), "--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--metric-percentiles", "99", "--temperature", "0", "--save-result"),
    ]


def ask(command: list[str]) -> dict[str, float]:
    """One client's figures. Raises: SystemExit with its output where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [*command, "--result-dir", directory, "--result-filename", result.name]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        told = subprocess.run(
            command, env=offline, capture_output=True, text=True, timeout=_RUN_S, check=False
        )
        if told.returncode or not result.exists():
            raise SystemExit(f"{' '.join(command)}\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
        figures = json.loads(result.read_text(encoding="utf-8"))
    return {name: figures[name] for name in FIELDS}


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server is ready. Raises: SystemExit where it ends or takes too long."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the server did not start")


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Samples of each client, in turns; the one that goes first changes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    fathom = [sys.executable, "-c", "from fathom.cli import main; main()"]
    clients = {"fathom": [*fathom, "bench", "serve"], "vllm": [str(options.vllm), "-c", _VLLM]}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    server = subprocess.Popen(
        [*fathom, "serve", str(options.model), "--served-model-name", NAME, "--port", str(port),
         *options.serve_flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(url, server)
        for number in range(-1, options.repeats):
            for name in list(clients)[:: 1 if number % 2 else -1]:
                # A seed of its own for each: nothing may hit the other's cached prompts.
                seed = 2 * number + (name == "vllm") + 10
                found = ask([*clients[name], *flags(url, options.model, options, seed)])
                if number >= 0:
                    samples[name].append(found)
                    print(name, " ".join(f"{key}={found[key]:.1f}" for key in FIELDS), flush=True)
    finally:
        server.terminate()
        server.wait(60)
    return samples


def main() -> None:
    """Measure, print a line for each figure, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="the Python of a vLLM")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-prompts", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second")
    output = ROOT / "bench" / "results" / "agreement.json"
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("serve_flags", nargs="*", help="flags of fathom serve, after --")
    options = parser.parse_args()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    samples = measure(options)
    print(f"{'median of each':22}{'fathom':>12}{'vllm':>12}{'ratio':>8}")
    ratios: dict[str, Any] = {}
    for name in FIELDS:
        ours, theirs = (statistics.median(one[name] for one in samples[who]) for who in samples)
        ratios[name] = ours / theirs
        print(f"{name:22}{ours:12.1f}{theirs:12.1f}{ratios[name]:8.3f}")
    report = {
        "benchmark": "agreement",
        "started": started,
        "machine": machine_facts(),
        "config": {
            "model": options.model.name,
            "num_prompts": options.num_prompts,
            "rate": options.rate,
            "serve_flags": options.serve_flags,
        },
        "ratios": ratios,
        "samples": samples,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
