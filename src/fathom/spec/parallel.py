"""Who owns which part of a tensor: the layout of ranks, and the rules that cut parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks along each axis of parallelism."""

    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp * self.dp * self.pp


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's place in a layout."""

    layout: Layout = Layout()
    rank: int = 0

    @property
    def tp_rank(self) -> int:
        """Index along the tensor-parallel axis (the fastest-varying one)."""
        return self.rank % self.layout.tp


class ShardRule(Enum):
    """How a stored tensor is cut along the tensor-parallel axis."""

    REPLICATE = "replicate"  # every rank holds all of it
    ROWS = "rows"  # dimension 0 (outputs) in equal contiguous parts
    COLUMNS = "columns"  # dimension 1 (inputs) in equal contiguous parts


def owned_slice(
    rule: ShardRule, shape: tuple[int, ...], shard: Shard, max_parts: int | None = None
) -> tuple[slice, ...]:
    """The part of a tensor of `shape` that `shard` owns, one slice per dimension; neighbours own
    the same one where there are more ranks than `max_parts`."""
    whole = tuple(slice(0, size) for size in shape)
    if rule is ShardRule.REPLICATE or shard.layout.tp == 1:
        return whole
    axis = 0 if rule is ShardRule.ROWS else 1
    parts = min(shard.layout.tp, max_parts or shard.layout.tp)
    part = shape[axis] // parts
    start = part * (shard.tp_rank * parts // shard.layout.tp)
    return (*whole[:axis], slice(start, start + part), *whole[axis + 1 :])
