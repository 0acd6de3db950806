"""Bad input to a kernel is an error that names it, and nothing is read or written: every case would
otherwise touch memory outside of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fathom.errors import EngineError
from fathom.ops.api import Angles, Norm
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.batch import PagedBatch
from fathom.spec.model import Mla
from tests.models.paged_runs import make_batch

BF16 = torch.bfloat16
OPS = CpuBackend()
MLA = Mla(num_heads=2, q_lora_rank=None, kv_lora_rank=24, nope_dim=10, rope_dim=6, v_dim=14)


def zeros(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


WEIGHT = OPS.hold([zeros(70, 40)], dtype=BF16)
GATE_UP = OPS.hold_experts([[zeros(2 * 32, 40)]] * 3, 3, dtype=BF16, is_gated=True)
DOWN = OPS.hold_experts([[zeros(40, 32)]] * 3, 3, dtype=BF16)
KV_B = OPS.hold_kv_b(zeros(2 * 24, 24), MLA, dtype=BF16)
ANGLES = Angles(zeros(2, 3, dtype=torch.float32), zeros(2, 3, dtype=torch.float32), True)
NORM = Norm(zeros(24), 1e-6)
CACHE = zeros(4, 16, 30)


def experts(ids: torch.Tensor, **changed: Any) -> torch.Tensor:
    x = changed.pop("x", zeros(2, 40))
    return OPS.experts(x, ids, zeros(*ids.shape, dtype=torch.float32), GATE_UP, DOWN, **changed)


def attend(batch: PagedBatch, cache: torch.Tensor = CACHE) -> torch.Tensor:
    plan = OPS.mla_plan(batch, MLA)
    return OPS.mla_attend(zeros(2, 2, 16), cache, KV_B, plan, scale=1.0, angles=ANGLES)


def write(slots: list[int], cache: torch.Tensor = CACHE) -> None:
    inputs = zeros(2, 30)
    OPS.mla_write(
        cache,
        torch.tensor(slots),
        inputs[:, :24],
        inputs[:, 24:],
        norm=NORM,
        angles=ANGLES,
    )


GOOD = make_batch([[1, 2]], [18], [2], 16)
IDS = torch.tensor([[0, 2], [1, 0]])


def test_the_good_calls_are_taken() -> None:
    assert experts(IDS).shape == (2, 40)
    assert attend(GOOD).shape == (2, 2, 14)
    write([0, 63])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: OPS.linear(zeros(3, 41), WEIGHT), "rows of 41 values, wanted 40"),
        (lambda: OPS.linear(zeros(3, 40, dtype=torch.float32), WEIGHT), "float32"),
        (lambda: OPS.linear(zeros(40, 3).T, WEIGHT), "strides"),
        (lambda: OPS.linear(zeros(3, 40), GATE_UP), "packed for an MLP"),
        (lambda: OPS.linear(zeros(3, 40), WEIGHT, norm=Norm(zeros(39), 1e-6)), "norm"),
        (
            lambda: OPS.linear(
                zeros(3, 40), WEIGHT, norm=Norm(zeros(40), 0.1), residual=zeros(2, 40)
            ),
            "residual",
        ),
        (lambda: experts(torch.tensor([[0, 3], [1, 0]])), "3 of 3 experts"),
        (lambda: experts(torch.tensor([[0, -1], [1, 0]])), "-1 of 3 experts"),
        (lambda: experts(IDS.int()), "int32"),
        (lambda: experts(IDS[:1]), "expert_ids"),
        (lambda: experts(IDS, shared=(GATE_UP, WEIGHT)), "shapes that do not fit"),
        (lambda: write([0, 64]), "64 of 64"),
        (lambda: write([-1, 3]), "-1 of 64"),
        (lambda: write([0, 1], zeros(4, 16, 31)), "31 a token"),
        (lambda: write([0, 1], zeros(4, 32, 30)[:, ::2]), "one piece"),
        (lambda: write([0, 1], zeros(4, 16, 30, dtype=torch.uint8)), "30 a token"),
        (lambda: attend(replace(GOOD, page_table=torch.tensor([[1, 4]]))), "page 4 of 4"),
        (lambda: attend(replace(GOOD, page_table=torch.tensor([[1, -2]]))), "page -2 of 4"),
        (lambda: attend(replace(GOOD, context_lens=torch.tensor([40]))), "context of 40"),
        (lambda: attend(replace(GOOD, context_lens=torch.tensor([1]))), "2 queries in"),
        (lambda: attend(replace(GOOD, query_starts=torch.tensor([0, 3]))), "query_starts"),
        (lambda: attend(GOOD, zeros(4, 16, 29)), "29 a token"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        call()
