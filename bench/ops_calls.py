"""Calls of one op case as a decode step makes them: weights and caches cold, activations warm.

A step reads every layer's weights once, so that a call finds none of its own in the cache. Here a
case gets as many copies of its weights (or cached latents, or embedding rows) as are together twice
the last-level cache, and calls take them in turn; experts' ids move on with every call as well.
Values are those of one block, repeated: no time depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch

from fathom.ops.api import Backend, Weight
from fathom.ops.case_inputs import Draw, Inputs, held_inputs, make_inputs
from fathom.ops.cases import Case
from fathom.ops.costs import Cost, cost
from fathom.ops.quant.qtensor import QTensor

_BLOCK_VALUES = 2**18
_MAX_COPIES = 256
# Ops whose weights or caches are cold in a step; other ops' inputs were just written.
_COLD_TENSORS = {
    "route": ("weight",),
    "embed": ("weight",),
    "mla_write": ("cache",),
    "mla_attend": ("cache",),
}
_COLD = {*_COLD_TENSORS, "linear", "mlp", "experts"}


class RepeatedDraw(Draw):
    """Draws a block of values once and repeats it; a stack of experts is one, seen many times."""

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values in float32, repeated."""
        size = prod(shape)
        if size <= _BLOCK_VALUES:
            return super().normal(*shape)
        block = super().normal(_BLOCK_VALUES)
        return block.repeat(-(-size // _BLOCK_VALUES))[:size].view(shape)

    def weight(self, *shape: int) -> Weight:
        """In the case's format."""
        if len(shape) < 3:
            return super().weight(*shape)
        one = super().weight(*shape[1:])
        if isinstance(one, torch.Tensor):
            return one.expand(shape)
        return one.with_tensors([part.expand(shape[0], *part.shape) for part in one.tensors])

    def plain_weight(self, *shape: int) -> torch.Tensor:
        """In the dtype of activations."""
        if prod(shape) <= _BLOCK_VALUES:
            return super().plain_weight(*shape)
        block = (super().normal(_BLOCK_VALUES) / sqrt(shape[-1])).to(self.dtype)
        return block.repeat(-(-prod(shape) // _BLOCK_VALUES))[: prod(shape)].view(shape)


@dataclass(frozen=True, slots=True)
class Calls:
    """`next()` makes the next call; `cost` of each (for experts: of the first)."""

    next: Callable[[], object]
    cost: Cost
    copies: int


def make_calls(
    backend: Backend, case: Case, *, cold_bytes: int, max_copies: int = _MAX_COPIES
) -> Calls:
    """Calls that come round to the same weights only after `cold_bytes` of others."""
    device = torch.device("cpu")
    inputs = make_inputs(case, device, RepeatedDraw(case, device))
    expected = cost(case)
    if case.op == "experts":
        expected = cost(case, distinct_experts=len(inputs["expert_ids"].unique()))
    copies = 1
    if case.op in _COLD:
        copies = min(max_copies, max(1, -(-cold_bytes // max(1, _held_bytes(case, inputs)))))
    variants = [_copy(backend, case, inputs) for _ in range(copies)]
    if case.op == "experts":
        variants = _with_other_experts(case, variants)
    function = getattr(backend, case.op)
    turn = 0

    def call() -> object:
        nonlocal turn
        turn = (turn + 1) % len(variants)
        return function(**variants[turn])

    return Calls(call, expected, copies)


def _held_bytes(case: Case, inputs: Inputs) -> int:
    """All that is held, though a call may touch a part only."""
    names = _COLD_TENSORS.get(case.op, ("weight", "gate_up", "down"))
    found = [inputs[name] for name in names if name in inputs]
    return sum(_bytes_of(value) for value in found)


def _bytes_of(weight: Weight) -> int:
    if isinstance(weight, QTensor):
        return sum(_bytes_of(part) for part in weight.tensors)
    return weight.numel() * weight.element_size()


def _copy(backend: Backend, case: Case, inputs: Inputs) -> dict[str, Any]:
    cold = {name: inputs[name].clone() for name in _COLD_TENSORS.get(case.op, ())}
    return held_inputs(backend, case, {**inputs, **cold})


def _with_other_experts(case: Case, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each call's experts follow those of the one before, in every copy."""
    assert case.moe is not None
    count, step = case.moe.num_experts, case.moe.experts_per_token
    return [
        {**variant, "expert_ids": (variant["expert_ids"] + shift) % count}
        for shift in range(0, count, step)
        for variant in variants
    ]
