"""The driver of llama.cpp: its own batched benchmark, a process a sample, and its server.

    python -m bench.peers.llama --tools DIR --model FILE.gguf --threads N --tuning FILE.json

The model is mapped from the page cache, so a process costs a second. Settings are searched for once
for each case, and kept in the tuning file.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench.peers.protocol import PeerError, answer_calls, end_group, run

_TOP = 20
_BRIEF_TOKENS = 16
_DEADLINE_S = 900.0
# What is tried: flash attention, and the tokens of a physical batch (prefill) or how the sequences'
# caches lie (decode).
_TRIED = {
    "prefill": tuple(("-fa", fa, "-ub", ub) for fa in ("on", "off") for ub in ("512", "2048")),
    "decode": tuple(("-fa", fa, kv) for fa in ("on", "off") for kv in ("-kvu", "-no-kvu")),
}


class LlamaCpp:
    """llama.cpp with one file."""

    def __init__(self, tools: Path, model: Path, threads: int, tuning: Path) -> None:
        self._tools, self._model, self._threads, self._tuning = tools, model, threads, tuning
        self._log = tuning.with_suffix(".log")
        self._best: dict[str, list[str]] = {}
        if tuning.exists():
            self._best = json.loads(tuning.read_text(encoding="utf-8"))

    def facts(self) -> dict[str, Any]:
        """Versions and settings."""
        command = [self._tools / "llama-server", "--version"]
        lines = run(command, deadline_s=60, log=self._log).splitlines()
        version = next((line for line in lines if line.startswith("version")), "unknown")
        settings = {"threads": self._threads, "bytes": self._model.stat().st_size}
        return {"versions": {"llama.cpp": version}, "settings": {**settings, "best": self._best}}

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """One sample; the first of a case also finds its best settings."""
        name = case["name"]
        if name not in self._best:
            brief = {**case, "new_tokens": min(case["new_tokens"], _BRIEF_TOKENS)}
            self._best[name] = list(
                max(_TRIED[case["kind"]], key=lambda flags: self._rate(brief, tuple(flags)))
            )
            self._tuning.write_text(json.dumps(self._best), encoding="utf-8")
        best = tuple(self._best[name])
        return {"rate": self._rate(case, best), "settings": " ".join(best)}

    def _rate(self, case: dict[str, Any], flags: tuple[str, ...]) -> float:
        batch, context, new_tokens = case["batch"], case["context"], case["new_tokens"]
        sizes = {"-npp": context, "-ntg": new_tokens, "-npl": batch}
        command: list[object] = [self._tools / "llama-batched-bench", "-m", self._model, *flags]
        for flag, value in sizes.items():
            command += [flag, str(value)]
        # Some cells more than needed: without a unified cache each sequence has an equal part.
        command += ["-c", str(batch * (context + new_tokens + 64)), "-b", "2048"]
        command += ["-t", str(self._threads), "--output-format", "jsonl"]
        if case["kind"] == "decode":
            # One prompt for all sequences: only its time is saved, for new tokens are random.
            command.append("-pps")
        output = run(command, deadline_s=_DEADLINE_S, log=self._log)
        rows = [line for line in output.splitlines() if line.startswith("{")]
        if not rows:
            raise PeerError("llama-batched-bench gave no result")
        row = json.loads(rows[-1])
        return float(row["speed_pp" if case["kind"] == "prefill" else "speed_tg"])

    def logprobs(self, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
        """Greedy tokens and their top 20, from its server."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(self._tools / "llama-server"), "-m", str(self._model), "--port", str(port)]
        command += ["--host", "127.0.0.1", "-t", str(self._threads), "-np", "1", "-c", "2048"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_ready(port, process)
            return [_ask(port, prompt, new_tokens) for prompt in prompts]
        finally:
            end_group(process)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + _DEADLINE_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise PeerError("llama-server did not become ready")


def _ask(port: int, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": new_tokens,
        "temperature": 0,
        "n_probs": _TOP,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_DEADLINE_S) as response:
        steps = json.load(response)["completion_probabilities"]
    tops = [[[one["id"], one["logprob"]] for one in step["top_logprobs"]] for step in steps]
    return {"tokens": [step["id"] for step in steps], "top": tops}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tuning", type=Path, required=True)
    args = parser.parse_args()
    answer_calls(lambda: LlamaCpp(args.tools, args.model, args.threads, args.tuning))


if __name__ == "__main__":
    main()
