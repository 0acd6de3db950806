"""What every backend must pass: `check` compares one case with the float64 oracle."""

from __future__ import annotations

import copy

import torch

from fathom.ops.api import Backend
from fathom.ops.case_inputs import make_inputs, run_case
from fathom.ops.cases import Case
from tests.ops.float64_oracle import Float64Oracle


def check(backend: Backend, case: Case, device: torch.device) -> None:
    """Raises: AssertionError where the backend's result is not the oracle's.

    Integers must be equal. NaN and infinities must stand in the same places, and what is finite
    must differ by no more than the case's tolerance times the largest finite value.
    """
    wanted = run_case(Float64Oracle(), case, make_inputs(case, torch.device("cpu")))
    inputs = make_inputs(case, device)
    untouched = copy.deepcopy(inputs)
    got = run_case(backend, case, inputs)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert value.device.type == device.type
        assert_same(value.cpu(), wanted[name], case.tolerance, f"{case.id}: {name}")
    written = {
        "rms_norm": "residual",
        "linear": "residual",
        "mla_write": "cache",
        "mask_logits": "logits",
    }.get(case.op)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and name != written:
            assert value.equal(untouched[name]) or value.isnan().any(), f"{name} was changed"


def assert_same(got: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    assert got.shape == wanted.shape, what
    if not got.is_floating_point():
        assert got.dtype == torch.int64, what
        assert got.equal(wanted), what
        return
    got, wanted = got.double(), wanted.double()
    assert got.isnan().equal(wanted.isnan()), f"{what}: NaN in different places"
    is_infinite = wanted.isinf()
    assert got.isinf().equal(is_infinite), f"{what}: infinities in different places"
    assert got[is_infinite].equal(wanted[is_infinite]), f"{what}: infinities of different signs"
    is_finite = wanted.isfinite()
    if is_finite.any():
        largest = wanted[is_finite].abs().max().item()
        difference = (got - wanted)[is_finite].abs().max().item()
        assert difference <= tolerance * largest, f"{what}: {difference} of {largest}"
