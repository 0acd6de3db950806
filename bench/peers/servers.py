"""Starts a peer's server, measures it over HTTP, ends it. It listens on 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers import cases
from bench.peers.client import Target, burst, complete
from bench.peers.peers import SERVED_NAME, Peer
from bench.peers.protocol import ROOT, PeerError, end_group, log_tail, one_line
from bench.peers.system import peak_memory_bytes, watched

# Called with a case's name and its sample; `error` in a sample stands for a failure.
Record = Callable[[str, dict[str, Any]], None]

_START_S = 900.0
_LOAD_S = 1800.0


class Server:
    """A running server. `start_s`: from the start of its process to the first token."""

    def __init__(self, peer: Peer, log: Path) -> None:
        """Start it and wait for the first token. Raises: PeerError."""
        assert peer.server is not None
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        log.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with log.open("ab") as log_file:
            self.process = subprocess.Popen(
                [*peer.server, str(port)],
                cwd=ROOT,
                env={**os.environ, **peer.environment},
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.target = Target(port, SERVED_NAME)
        try:
            self._wait(begun + _START_S, log)
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - begun

    def _wait(self, until_s: float, log: Path) -> None:
        last = "nothing listened"
        while time.monotonic() < until_s:
            if self.process.poll() is not None:
                raise PeerError(f"the server ended: {log_tail(log)}")
            try:
                asyncio.run(asyncio.wait_for(complete(self.target, [301, 302, 303], 1), 60))
            except (OSError, PeerError, asyncio.IncompleteReadError) as error:
                last = one_line(error)
                time.sleep(0.05)
            else:
                return
        raise PeerError(f"the server was not ready in {_START_S:.0f} s: {last}")

    def close(self) -> None:
        """End it and its children."""
        end_group(self.process)


def measure_server(peer: Peer, log: Path, seed: int, vocab_size: int, record: Record) -> None:
    """One round: start, mixed requests, a shared prefix, memory. Failures are recorded."""
    with watched() as seen:
        try:
            server = Server(peer, log)
        except PeerError as error:
            record(cases.START, {"error": str(error)})
            return
    record(cases.START, {"value": round(server.start_s, 3), **seen})
    loads = {
        cases.MIXED: cases.mixed_requests(seed, vocab_size),
        cases.PREFIX: cases.prefix_requests(seed, vocab_size),
    }
    try:
        for name, requests in loads.items():
            with watched() as seen:
                try:
                    told = burst(server.target, requests, _LOAD_S)
                except PeerError as error:
                    record(name, {"error": str(error)})
                    return
            value = told["wall_s"] if name == cases.PREFIX else told["output_tokens_per_s"]
            record(name, {"value": value, **told, **seen})
        record(cases.MEMORY, {"value": peak_memory_bytes(server.process.pid)})
    finally:
        server.close()
