"""What the client of `fathom bench serve` costs, and how well it tells the time.

    python bench/client.py [--streams N ...] [--rate TOKENS] [--seconds S] [--output FILE]

A server without a model, in another process, streams `rate` tokens a second on each of N streams
and writes into each event when it wrote it. Error: when the client says that the event came, minus
that. CPU: this process's own, for each token. The server's own lateness is told beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from starting import first_line

from fathom.commands.bench_facts import machine_facts
from fathom.perf.client_load import ClientLoadMeter
from fathom.perf.drive import WallClock, drive
from fathom.perf.http_stream import HttpClient, Origin
from fathom.perf.openai_stream import Asking, OpenAISender
from fathom.perf.report import Statistics
from fathom.perf.workload import LoadRequest, Workload

ROOT = Path(__file__).resolve().parents[1]
PERCENTS = (50.0, 99.0, 100.0)


async def measure(port: int, streams: int, num_tokens: int) -> dict[str, Any]:
    """One run: all streams begin within the first tenth of a second."""
    clock = WallClock()
    http = HttpClient(Origin("127.0.0.1", port, False), {}, clock.now_s)
    asking = Asking(
        model="scripted", dialect="completions", path="/v1/completions", timeout_s=120,
        keeps_text=True,
    )  # fmt: skip
    requests = tuple(
        LoadRequest(prompt="x", prompt_len=1, output_len=num_tokens, at_s=0.1 * index / streams)
        for index in range(streams)
    )
    async with ClientLoadMeter(clock.now_s) as meter:
        report = await drive(
            Workload(requests=requests), OpenAISender(http, asking, clock.now_s), clock
        )
    await http.close()
    assert len(report.complete) == streams, report.errors()
    errors_s, lateness_s = [], []
    for one in report.records:
        stamps = [line.split() for line in one.text.splitlines()]
        assert len(stamps) == len(one.times_s) == num_tokens
        for (due, written), came_s in zip(stamps, one.times_s, strict=True):
            errors_s.append(came_s + report.began_s - float(written))
            lateness_s.append(float(written) - float(due))
    told = meter.load.told(streams * num_tokens)
    return {
        "streams": streams,
        "tokens_a_stream": num_tokens,
        **told,
        "error_ms": _ms(errors_s),
        "server_lateness_ms": _ms(lateness_s),
    }


def _ms(samples_s: list[float]) -> dict[str, float]:
    one = Statistics.of((value * 1000.0 for value in samples_s), PERCENTS)
    return {f"p{percent:g}": value for percent, value in one.percentiles}


def run(streams: int, rate: float, seconds: float) -> dict[str, Any]:
    """Start a server, measure, end it."""
    command = [sys.executable, str(Path(__file__).with_name("sse_server.py"))]
    server = subprocess.Popen(
        [*command, "--first-s", "0.5", "--gap-s", str(1 / rate)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(first_line(server))
        return uvloop.run(measure(port, streams, max(1, round(rate * seconds))))
    finally:
        server.kill()
        server.communicate(timeout=30)


def main() -> None:
    """Measure, print a line for each number of streams, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 100, 300, 1000])
    parser.add_argument("--rate", type=float, default=30.0, help="tokens a second and stream")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "client.json")
    options = parser.parse_args()
    started, began_s = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    results = []
    for streams in options.streams:
        one = run(streams, options.rate, options.seconds)
        results.append(one)
        error = one["error_ms"]
        print(
            f"{streams:>5} streams  {one['client_cpu_us_per_output_token']:7.1f} us CPU/token   "
            f"{one['client_cpu_share']:6.1%} of a core   "
            f"error p50 {error['p50']:.3f} p99 {error['p99']:.3f} max {error['p100']:.3f} ms   "
            f"server late p99 {one['server_lateness_ms']['p99']:.3f} ms"
        )
    report = {
        "benchmark": "client",
        "started": started,
        "took_s": time.perf_counter() - began_s,
        "machine": machine_facts(),
        "rate_a_stream": options.rate,
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
