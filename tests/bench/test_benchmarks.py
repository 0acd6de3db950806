"""Runs the benchmarks, briefly, and compares what they write with what a reader of it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ("scheduler.py",),
        ("server.py", "--rounds", "1"),
        ("client.py", "--streams", "20", "--seconds", "0.5"),
    ],
    ids=lambda command: command[0],
)
def test_benchmarks_run_and_say_of_what(command: tuple[str, ...], tmp_path: Path) -> None:
    """The server's once named what the engine had lost, and only the next measurement told."""
    output = tmp_path / "results.json"
    name, *flags = command
    subprocess.run(
        [sys.executable, str(ROOT / "bench" / name), *flags, "--output", str(output)],
        check=True,
        timeout=200,
    )
    results = json.loads(output.read_text(encoding="utf-8"))
    assert {"machine", "commit"} <= results.keys() | results["machine"].keys()
