"""Malformed requests of every kind, against a server of the embedded model: memory stays flat, it
never answers 5xx, and good requests between them are answered.

    python -m bench.soak [--requests N] [--connections N] [--output FILE]

Malformed kinds are drawn with equal chance: damaged JSON, no JSON, wrong values and unknown names
in every dialect, more than the limits, wrong schemas and grammars, HTTP that is none. Chance makes
a few of them good (a schema that is true, a cut that cuts nothing): the answers say how many. One
request in 100 is of a client that leaves: a good one, half sent or half answered, which starts a
generation and is no part of the count that is asked for. Every 500th is good, and answered.

Memory is the resident size of each process, sampled 40 times. It grows until what is kept is full:
tokenizers keep 10,000 words in each of the three processes, the engine compiled grammars
(`text/grammar/engine.py`), `/v1/responses` its answers (up to 256 MiB), allocators what the largest
request and step took. The engine's page pool is committed as it is first written, a little by every
answer; it is small here, so that it is whole before the second quarter.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import uvloop

from bench.ops_machine import commit
from bench.soak_requests import LEAVING, MALFORMED, Requests
from bench.starting import first_line

ANSWER_WAIT_S = 30.0
NUM_SAMPLES = 40
POOL = "32MiB"
NAMES = {"fathom.engine.processes": "engine", "fathom.engine.grammar_process": "grammars"}
_END = (None, None)


@dataclass(slots=True)
class Told:
    """What came back: kind -> status -> how often; `memory`: how many were sent, and what each
    process took then, MiB. `num_malformed` of `num_sent` are what was asked for."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    num_sent: int = 0
    num_malformed: int = 0
    worst: list[str] = field(default_factory=list)

    def draw(self, pick: Random) -> Callable[[Requests], bytes]:
        """What kind the next request is of."""
        self.num_sent += 1
        if self.num_sent % 500 == 0:
            return Requests.good
        if self.num_sent % 100 == 1:
            return pick.choice(LEAVING)
        self.num_malformed += 1
        return pick.choice(MALFORMED)

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
    """Sends until all connections together have sent `num_requests` malformed ones."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while told.num_malformed < num_requests:
        kind = told.draw(requests.pick)
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


def processes_of(pid: int) -> dict[str, float]:
    """Resident memory of a server's processes, MiB: "api", and its children by `NAMES`."""
    told = {"api": resident_mib(pid)}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text(encoding="ascii").split():
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                module = command[command.index(b"-m") + 1].decode() if b"-m" in command else child
                told[NAMES.get(module, module)] = resident_mib(int(child))
    return told


async def soak(url: str, pid: int, model: str, num_requests: int, num_connections: int) -> Told:
    """Send `num_requests` malformed ones, and others between; what came back."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    told = Told()

    async def watch() -> None:
        for number in range(1, NUM_SAMPLES + 1):
            while told.num_malformed < number * num_requests // NUM_SAMPLES:
                await asyncio.sleep(0.02)
            told.memory.append((told.num_sent, processes_of(pid)))

    await asyncio.gather(
        watch(),
        *(
            connection((host, int(port)), Requests(Random(seed), model), told, num_requests)
            for seed in range(num_connections)
        ),
    )
    return told


def growth_mib(told: Told, process: str) -> float:
    """By how much a process grew from the second quarter to the last one: their medians."""
    values = [row.get(process, 0.0) for _, row in told.memory]
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
    command = [sys.executable, "-m", "fathom.cli", "serve", "--port", "0", "--threads", "1"]
    # An answer that chance made long must still end within the wait.
    command += ["--kv-cache-memory-bytes", POOL, "--max-model-len", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = first_line(server).split()[-1]
            began_s = time.monotonic()
            told = uvloop.run(
                soak(url, server.pid, "fathom-embedded", asked.requests, asked.connections)
            )
            took_s = time.monotonic() - began_s
        finally:
            server.kill()
    result = {
        "machine": platform.processor() or platform.machine(),
        "commit": commit(),
        "requests": told.num_sent,
        "malformed": told.num_malformed,
        "seconds": round(took_s, 1),
        "growth_mib": {name: round(growth_mib(told, name), 1) for name in told.memory[-1][1]},
        "kinds": {
            kind: {"sent": counts.total(), "answered": dict(sorted(counts.items()))}
            for kind, counts in sorted(told.statuses.items())
        },
        "memory": [
            f"{sent} requests: "
            + ", ".join(f"{name} {size_mib:.1f}" for name, size_mib in row.items())
            for sent, row in told.memory
        ],
        "worst": told.worst,
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if asked.output is not None:
        asked.output.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if told.worst else 0)


if __name__ == "__main__":
    main()
