"""The first line of a server that a benchmark starts, under a deadline."""

from __future__ import annotations

import subprocess
from threading import Timer

START_S = 120.0


def first_line(server: subprocess.Popen[str]) -> str:
    """What a server says once it listens. Raises: RuntimeError where it ends before that, or says
    nothing for `START_S` seconds and is ended."""
    assert server.stdout is not None
    deadline = Timer(START_S, server.kill)
    deadline.start()
    try:
        line = server.stdout.readline()
    finally:
        deadline.cancel()
    if not line:
        raise RuntimeError(f"{server.args!r} ended, or said nothing within {START_S:g} s")
    return line.strip()
