"""Compares what the server on the embedded model answers with its own description of itself: the
requests that schemathesis makes of that, valid and invalid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)  # a minute and a half on two idle cores
def test_every_operation_holds_to_the_description(tmp_path: Path) -> None:
    output = tmp_path / "fuzz.json"
    command = [sys.executable, str(ROOT / "bench/fuzz_api.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(output.read_text(encoding="utf-8"))
    operations = told["operations"]
    assert operations["tested"] == operations["selected"] == operations["total"] > 30
    assert not told["failures"]
    assert all(int(status) < 500 for status in told["statuses"])
    assert told["statuses"]["200"] > 100
