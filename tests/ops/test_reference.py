"""Compares the reference backend with the float64 oracle on the whole op case table."""

from __future__ import annotations

import pytest
import torch

from fathom.ops import reference_attention
from fathom.ops.cases import Case, all_cases, cases_of
from fathom.ops.reference import ReferenceBackend
from fathom.ops.reference_attention import Path
from tests.ops.op_conformance import check

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_reference(case: Case) -> None:
    check(ReferenceBackend(), case, CPU)


@pytest.mark.parametrize("path", ["absorbed", "multi_head"])
@pytest.mark.parametrize("case", cases_of("mla_attend"), ids=lambda case: case.id)
def test_each_form_of_attention(case: Case, path: Path) -> None:
    check(ReferenceBackend(path), case, CPU)


@pytest.mark.parametrize("case", cases_of("mla_attend"), ids=lambda case: case.id)
def test_each_sequence_by_itself(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_attention, "MAX_GATHERED_CPU", 1)
    check(ReferenceBackend(), case, CPU)


def test_case_ids_are_unique() -> None:
    ids = [case.id for case in all_cases()]
    assert len(ids) == len(set(ids))
