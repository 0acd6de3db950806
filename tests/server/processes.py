"""`fathom serve` and `fathom proxy` in processes of their own, on the embedded model."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx

WAIT_S = 120.0


class Server:
    """A program that answers."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.port = int(url.rpartition(":")[2])

    def gauge(self, name: str) -> float:
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"vllm:{name}{{"):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name}")

    def is_empty(self) -> bool:
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.gauge(name) == 0 for name in names)

    def until(self, is_true: Callable[[], bool], timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.01)


def serving(*flags: str) -> AbstractContextManager[Server]:
    """`fathom serve` with these flags."""
    return _running("serve", "--threads", "1", "--kv-cache-memory-bytes", "96MiB", *flags)


def proxying(upstream: str, *flags: str) -> AbstractContextManager[Server]:
    """`fathom proxy` in front of `upstream`."""
    return _running("proxy", "--upstream", upstream, "--log-level", "error", *flags)


@contextmanager
def _running(command: str, *flags: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fathom.cli", command, "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("fathom is ready at "), process.communicate(timeout=WAIT_S)[1]
        yield Server(process, first.split()[-1])
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)
