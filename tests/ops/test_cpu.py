"""Compares the CPU backend with the float64 oracle on the op case table."""

from __future__ import annotations

import pytest
import torch

from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.cases import Case, all_cases
from tests.ops.op_conformance import check

CPU = torch.device("cpu")
CASES = [case for case in all_cases() if case.dtype == "bfloat16"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cpu(case: Case) -> None:
    check(CpuBackend(), case, CPU)
