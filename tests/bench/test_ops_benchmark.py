"""Runs the benchmark of ops, briefly; compares its figures with each other and with the table."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.ops.backends.cpu import library

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_times_every_backend(tmp_path: Path) -> None:
    output = tmp_path / "ops.json"
    command = [sys.executable, str(ROOT / "bench" / "ops.py"), "--quick", "--repeats", "3"]
    command += ["--ops", "linear,route,mla_write,mla_attend,experts"]
    command += ["--cases", "one-,tiny-,page16"]
    answer = subprocess.run(
        [*command, "--threads", "1", "--output", str(output)],
        check=True,
        timeout=200,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text(encoding="utf-8"))
    assert {"machine", "commit", "config", "load_average", "rates", "results"} <= report.keys()
    names = {one["backend"] for one in report["results"]}
    assert {"reference", library.isa()} <= names == set(report["rates"])
    assert {one["weights"] for one in report["results"] if one["op"] == "linear"} >= {
        "bfloat16",
        "fp8_block",
        "int8",
        "int4",
    }
    for one in report["results"]:
        assert len(one["samples_us"]) == 3
        assert one["median_us"] == pytest.approx(statistics.median(one["samples_us"]), abs=0.01)
        rates = report["rates"][one["backend"]]
        moved = one["cost"]["weight_bytes"] + one["cost"]["activation_bytes"]
        computing = one["cost"]["operations"] / rates["operations_per_s"][one["cost"]["operand"]]
        least = 1e6 * max(moved / rates["bytes_per_s"], computing)
        assert one["roofline_us"] == pytest.approx(least, abs=0.01)
    assert answer.stdout.count("\n") == len(names) + 1 + min(60, len(report["results"]))
