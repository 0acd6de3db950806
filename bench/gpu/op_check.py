"""The op case table on the device: the reference backend against the tests' float64 oracle."""

from __future__ import annotations

from fathom.ops.reference import ReferenceBackend
from gpu.measure import Row, Settings, failure
from tests.ops.cases import all_cases
from tests.ops.op_conformance import check


def run(settings: Settings) -> list[Row]:
    """One row per case; a dry run takes every eighth."""
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
