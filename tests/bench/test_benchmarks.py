"""Runs the benchmarks, briefly, and compares what they write with what a reader of it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.quality_page import page as page_of_quality
from fathom.spec.quality import Divergence, excess

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


def test_idle_time_of_the_kernels_threads(tmp_path: Path) -> None:
    output = tmp_path / "idle.json"
    sizes = ("--batch", "4", "--context", "8", "--steps", "6", "--repeats", "2")
    subprocess.run(
        [sys.executable, "-m", "bench.idle", *sizes, "--output", str(output)],
        check=True,
        timeout=200,
        cwd=ROOT,
    )
    results = json.loads(output.read_text(encoding="utf-8"))
    assert len(results["samples"]) == 2
    assert all(sample["step_s"] > 0 and sample["idle"] < 1 for sample in results["samples"])


def test_the_page_of_quality_is_made_of_its_results() -> None:
    """The tables of docs/quality.md against the figures that a measurement wrote."""
    page = ROOT / "docs" / "quality.md"
    results = json.loads((ROOT / "bench/results/quality.json").read_text(encoding="utf-8"))
    assert {"machine", "commit", "command"} <= results.keys()
    assert page.read_text(encoding="utf-8") == page_of_quality(results), (
        "run: python -m bench.quality_page"
    )


def test_the_results_are_within_the_limits() -> None:
    results = json.loads((ROOT / "bench/results/quality.json").read_text(encoding="utf-8"))
    rows = results["formats"] + results["checkpoints"]
    names = [row["format"].removesuffix(" (quantize)") for row in rows]
    assert {"bf16", "fp8", "int8", "int4", "kv_fp8", "int4-32"} <= set(names)
    for name, row in zip(names, rows, strict=True):
        assert not excess(name, Divergence(**row["divergence"]))
