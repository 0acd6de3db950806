"""Compares the CPU backend with the float64 oracle on the op cases, by every instruction set."""

from __future__ import annotations

import pytest
import torch

from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.cases import Case, all_cases
from tests.ops.cpu_kernels import available, using
from tests.ops.op_conformance import check

CPU = torch.device("cpu")
CASES = [case for case in all_cases() if case.dtype == "bfloat16"]


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cpu(case: Case, isa: str) -> None:
    with using(isa):
        check(CpuBackend(), case, CPU)
