"""Who owns which part of a tensor: the layout of ranks, and the rules that cut parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks along each axis of parallelism.

    The layers are divided over `pp` stages of tp * dp ranks each. In a stage attention, dense MLPs
    and shared experts are cut `tp` ways and repeated `dp` times, each time for sequences and KV
    pages of its own (data-parallel attention). Routed experts are divided into `ep` groups over all
    ranks of the stage, and each is cut tp * dp / ep ways.
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def stage_size(self) -> int:
        """Ranks of one stage."""
        return self.tp * self.dp

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stage_size * self.pp

    @property
    def expert_cuts(self) -> int:
        """Ranks that share each routed expert."""
        return self.stage_size // self.ep


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's place in a layout: rank = (stage * dp + replica) * tp + tp_rank."""

    layout: Layout = Layout()
    rank: int = 0

    @property
    def tp_rank(self) -> int:
        """Index along the tensor-parallel axis (the fastest-varying one)."""
        return self.rank % self.layout.tp

    @property
    def stage(self) -> int:
        """Index of the pipeline stage."""
        return self.rank // self.layout.stage_size

    @property
    def expert_group(self) -> int:
        """Index of the group of experts."""
        return self.rank % self.layout.stage_size // self.layout.expert_cuts

    @property
    def expert_rank(self) -> int:
        """Index among the ranks that share this one's experts."""
        return self.rank % self.layout.expert_cuts


class ShardRule(Enum):
    """How a stored tensor is cut: along the tensor-parallel axis, an expert's among the ranks that
    share it."""

    REPLICATE = "replicate"  # every rank holds all of it
    ROWS = "rows"  # dimension 0 (outputs) in equal contiguous parts
    COLUMNS = "columns"  # dimension 1 (inputs) in equal contiguous parts


def stage_of(layer: int, num_layers: int, pp: int) -> int:
    """The stage that computes a layer: as many each as possible, the first ones one more where that
    does not come out even. Layers from `num_layers` on draft, and follow the last one."""
    each, more = divmod(num_layers, pp)
    at = min(layer, num_layers - 1)
    if at < more * (each + 1):
        return at // (each + 1)
    return more + (at - more * (each + 1)) // each


def owned_slice(
    rule: ShardRule,
    shape: tuple[int, ...],
    shard: Shard,
    *,
    is_expert: bool = False,
    max_parts: int | None = None,
) -> tuple[slice, ...]:
    """The part of a tensor of `shape` that `shard` owns, one slice per dimension.

    `max_parts`: where there are more ranks, neighbours own the same part (KV heads).
    """
    whole = tuple(slice(0, size) for size in shape)
    ranks, rank = shard.layout.tp, shard.tp_rank
    if is_expert:
        ranks, rank = shard.layout.expert_cuts, shard.expert_rank
    if rule is ShardRule.REPLICATE or ranks == 1:
        return whole
    parts = min(ranks, max_parts or ranks)
    axis = 0 if rule is ShardRule.ROWS else 1
    size = shape[axis] // parts
    start = size * (rank * parts // ranks)
    return (*whole[:axis], slice(start, start + size), *whole[axis + 1 :])
