"""Malformed requests of every kind, against a server of the embedded model: memory stays flat, it
never answers 5xx, and good requests between them are answered.

    python -m bench.soak [--requests N] [--connections N] [--output FILE]

Kinds are drawn with equal chance: damaged JSON, no JSON, wrong values and unknown names in every
dialect, more than the limits, wrong schemas and grammars, HTTP that is none, clients that leave. A
good request follows every 500th. Memory is the resident size of the API's process and, apart, of
its children (the engine; the process that checks grammars), sampled 40 times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.ops_machine import commit
from bench.soak_requests import KINDS, LEAVING, Requests

ANSWER_WAIT_S = 30.0
_END = (None, None)


@dataclass(slots=True)
class Told:
    """What came back: kind -> status -> how often; `memory`: requests, API MiB, children MiB."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[tuple[int, float, float]] = field(default_factory=list)
    num_sent: int = 0
    worst: list[str] = field(default_factory=list)

    def add(self, kind: str, status: str, request: bytes) -> None:
        """Count an answer."""
        self.statuses.setdefault(kind, Counter())[status] += 1
        is_bad = status == "none" or status.startswith("5") or (kind == "good" and status != "200")
        if is_bad and len(self.worst) < 20:
            self.worst.append(f"{kind} {status}: {request[:500]!r}")


async def answer_of(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """Status, and whether the connection goes on. 'closed' where there is no answer."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if "content-length:" in head:
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        else:
            await reader.readuntil(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return "closed", False
    return head.split()[1], "connection: close" not in head


async def connection(
    address: tuple[str, int], requests: Requests, told: Told, num_requests: int
) -> None:
    """Sends until `num_requests` are sent by all connections together."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while told.num_sent < num_requests:
        told.num_sent += 1
        is_good = told.num_sent % 500 == 0
        kind = Requests.good if is_good else requests.pick.choice(KINDS)
        request = kind(requests)
        if reader is None or writer is None:
            reader, writer = await asyncio.open_connection(*address, limit=2**20)
        status, goes_on = "left", False
        with suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        if kind not in LEAVING:
            try:
                async with asyncio.timeout(ANSWER_WAIT_S):
                    status, goes_on = await answer_of(reader)
            except TimeoutError:
                status = "none"
        elif kind is Requests.left_stream:
            await reader.read(64)
        told.add(kind.__name__, status, request)
        # What is no HTTP may leave bytes behind that the next answer would be taken for.
        if not goes_on or kind in (Requests.no_http, Requests.over_limit):
            await hang_up(writer)
            reader, writer = _END
    if writer is not None:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever the server makes of it."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it has just ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.partition("VmRSS:")[2].split()[0] or 0) / 1024 if "VmRSS:" in text else 0.0


def children_of(pid: int) -> list[int]:
    """Processes below a process."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text(encoding="ascii").split():
                found += [int(child), *children_of(int(child))]
    return found


async def soak(url: str, pid: int, model: str, num_requests: int, num_connections: int) -> Told:
    """Send `num_requests`; what came back."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    told, samples = Told(), 40

    async def watch() -> None:
        for number in range(samples + 1):
            while told.num_sent < number * num_requests // samples:
                await asyncio.sleep(0.02)
            children = sum(resident_mib(child) for child in children_of(pid))
            told.memory.append((told.num_sent, resident_mib(pid), children))

    await asyncio.gather(
        watch(),
        *(
            connection((host, int(port)), Requests(Random(seed), model), told, num_requests)
            for seed in range(num_connections)
        ),
    )
    return told


def growth_mib(told: Told, column: int) -> float:
    """By how much memory grew from the second quarter to the last one: their medians."""
    values = [row[column] for row in told.memory]
    quarter = len(values) // 4
    before = sorted(values[quarter : 2 * quarter])[quarter // 2]
    return sorted(values[-quarter:])[quarter // 2] - before


def main() -> None:
    """Start a server unless one is named, soak it, and say what came back."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    command = (sys.executable, "-m", "fathom.cli", "serve", "--port", "0", "--threads", "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            began_s = time.monotonic()
            told = asyncio.run(
                soak(url, server.pid, "fathom-embedded", asked.requests, asked.connections)
            )
            took_s = time.monotonic() - began_s
        finally:
            server.kill()
    result = {
        "machine": platform.processor() or platform.machine(),
        "commit": commit(),
        "requests": told.num_sent,
        "seconds": round(took_s, 1),
        "growth_mib": {"api": growth_mib(told, 1), "children": growth_mib(told, 2)},
        "statuses": {kind: dict(sorted(c.items())) for kind, c in sorted(told.statuses.items())},
        "memory": [f"{sent} requests: {api:.1f} and {rest:.1f}" for sent, api, rest in told.memory],
        "worst": told.worst,
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if asked.output is not None:
        asked.output.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if told.worst else 0)


if __name__ == "__main__":
    main()
