"""The op case table on the device: the reference backend against the tests' float64 oracle."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from fathom.ops.cases import all_cases
from fathom.ops.reference import ReferenceBackend
from gpu.measure import Row, Settings, failure

_TESTS = Path(__file__).resolve().parents[2] / "tests" / "ops"


def run(settings: Settings) -> list[Row]:
    """One row per case; a dry run takes every eighth."""
    sys.path[:0] = [str(_TESTS)]
    check = importlib.import_module("op_conformance").check
    rows = []
    for case in all_cases()[:: settings.pick(1, 8)]:
        row: Row = {"name": case.id}
        try:
            check(ReferenceBackend(), case, settings.device)
            row["ok"] = True
        except AssertionError as error:
            row |= {"ok": False} | failure(error)
        except Exception as error:
            row |= failure(error)
        rows.append(row)
    return rows
