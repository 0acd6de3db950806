"""Bytes of the parameters that a rank holds, as its backend holds them.

The reference keeps tensors as they are loaded, joined; the CPU kernels pack them in strips of 64
outputs, padded (csrc/matrix.h). Both join some matrices under one another (`models/layers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from fathom.perf.packed import Packed
from fathom.spec.families import Model, num_experts, parameters
from fathom.spec.formats import BFLOAT16, INT8_CHANNEL, Format
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout, Shard, stage_of
from fathom.spec.params import ParamSpec
from fathom.spec.plan import MemoryLine
from fathom.units import format_count

# By role: the roles that a matrix is joined below.
_JOINED = {
    "kv_a": ("q_a", "q"),
    "dense_up": ("dense_gate",),
    "expert_up": ("expert_gate",),
    "shared_up": ("shared_gate",),
}
# Looked up, or multiplied by a kernel of its own.
_NEVER_PACKED = ("embed", "mtp_embed", "router")
TIED_HEAD = "tied_head"
_PARTS = {
    "embed": "weights: embedding and head",
    "head": "weights: embedding and head",
    "tied": "weights: embedding and head",
    "dense": "weights: dense MLP",
    "expert": "weights: experts",
    "shared": "weights: shared experts",
    "router": "weights: norms and routers",
    "correction": "weights: norms and routers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """In which formats a rank holds parameters: as in `load_parameters`. `drafts`: with the MTP
    layers; `packs`: by the CPU kernels."""

    compute: Format = BFLOAT16
    dequantize: bool = False
    quantization: Quantization | None = None
    drafts: bool = False
    packs: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """Parameters that are held as one, `count` times (an expert each) in each of `layers`.

    `params` are those of the first; the embedding counts to the first layer, and what follows the
    layers to the last.
    """

    params: tuple[ParamSpec, ...]
    is_mtp: bool
    count: int
    layers: tuple[int, ...]

    @property
    def role(self) -> str:
        """Of the first parameter."""
        return self.params[0].role

    def shapes(self, shard: Shard) -> list[tuple[int, ...]]:
        """Of the parts that `shard` owns."""
        return [param.local_shape(shard) for param in self.params]

    @property
    def is_expert(self) -> bool:
        """Whether each group of experts holds its own of them."""
        return self.params[0].expert is not None

    def counted(self, spec: Model, shard: Shard) -> int:
        """How many of them `shard` holds."""
        num_layers = _layers_on(self.layers, spec.num_layers, shard.layout.pp, shard.stage)
        return num_layers * (self.count // shard.layout.ep if self.is_expert else self.count)

    def format(self, shard: Shard, holding: Holding) -> Format:
        """The format of all of it: what `ParamSource` and the backends agree on."""
        if self.role == TIED_HEAD or (self.role == "kv_b" and not holding.packs):
            return holding.compute  # the reference multiplies kv_b out whatever it is asked
        formats = {
            param.local_format(
                shard,
                holding.compute,
                dequantize=holding.dequantize,
                quantization=holding.quantization,
            )
            for param in self.params
        }
        if len(formats) == 1:
            return formats.pop()
        are_quantised = all(one.block is not None for one in formats)
        return INT8_CHANNEL if are_quantised else holding.compute

    def packed(self, spec: Model, shard: Shard, holding: Holding) -> tuple[Packed, ...]:
        """What the CPU kernels hold of one layer's; nothing of tensors that they take as they
        are."""
        shapes, format = self.shapes(shard), self.format(shard, holding)
        if len(shapes[0]) == 1 or self.role in _NEVER_PACKED:
            return ()
        if self.role == "kv_b" and isinstance(spec, ModelSpec):
            # Two stacks by head; blocks of 128 rows do not fit heads.
            format = format if format.name == "int8" else BFLOAT16
            mla, heads = spec.mla, spec.mla.num_heads // shard.layout.tp
            return (
                Packed("absorb", format, mla.kv_lora_rank, mla.nope_dim, heads),
                Packed("expand", format, mla.v_dim, mla.kv_lora_rank, heads),
            )
        if format.block is None:
            format = BFLOAT16
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        count = self.count // shard.layout.ep if self.is_expert else 1
        is_gated = self.role.endswith("_gate")
        return (Packed(self.role, format, rows, columns, count, is_gated),)

    def held_bytes(self, spec: Model, shard: Shard, holding: Holding) -> int:
        """Bytes of all that `shard` holds."""
        counted = self.counted(spec, shard)
        packed = self.packed(spec, shard, holding) if holding.packs else ()
        if packed:
            stacks = counted // packed[0].count if self.is_expert else counted
            return stacks * sum(one.held_bytes for one in packed)
        format = self.format(shard, holding)
        return counted * sum(format.num_bytes(shape) for shape in self.shapes(shard))


@lru_cache(maxsize=16)
def joined_parameters(spec: Model) -> tuple[Joined, ...]:
    """Everything that a model consists of, like parts of layers counted together; a tied head too,
    which is held beside the embedding, and the MTP layers' copies of embedding and head."""
    found: dict[tuple[object, ...], tuple[tuple[ParamSpec, ...], list[int]]] = {}
    for (layer, is_mtp), rows in _by_layer(spec).items():
        for params, count in _join(rows, num_experts(spec)):
            roles = tuple((p.role, p.shape, p.format, p.packing, p.copy_of) for p in params)
            at = layer if layer is not None else 0 if params[0].role == "embed" else None
            key = (is_mtp, count, roles)
            layers = found.setdefault(key, (params, []))[1]
            layers.append(spec.num_layers - 1 if at is None else at)
    return tuple(
        Joined(params, bool(key[0]), int(str(key[1])), tuple(layers))
        for key, (params, layers) in found.items()
    )


def _by_layer(spec: Model) -> dict[tuple[int | None, bool], dict[str, list[ParamSpec]]]:
    """The parameter table by layer and role."""
    table: dict[tuple[int | None, bool], dict[str, list[ParamSpec]]] = {}
    for param in parameters(spec, is_brief=True):
        is_mtp = param.layer is not None and param.layer >= spec.num_layers
        table.setdefault((param.layer, is_mtp), {}).setdefault(param.role, []).append(param)
    if spec.tie_embeddings:
        (embedding,) = table[None, False]["embed"]
        table[None, False][TIED_HEAD] = [replace(embedding, role=TIED_HEAD)]
    return table


def _join(
    rows: dict[str, list[ParamSpec]], experts: int
) -> Iterator[tuple[tuple[ParamSpec, ...], int]]:
    """The first parameter of each role, with what is joined below it, and how many there are."""
    below = {above: role for role, candidates in _JOINED.items() for above in candidates}
    for role, params in rows.items():
        if any(above in rows for above in _JOINED.get(role, ())):
            continue
        lower = rows.get(below.get(role, ""), [])
        yield (params[0], *lower[:1]), len(params) if params[0].expert is None else experts


def stored_bytes(spec: Model) -> int:
    """Bytes of a checkpoint's tensors, with its MTP layers and their copies, as its layout counts
    them: int4 with zero points of four bits."""
    total = 0
    for one in joined_parameters(spec):
        for param in one.params if one.role != TIED_HEAD else ():
            size = param.format.num_bytes(param.shape)
            if param.format.name == "int4":
                size -= prod(param.shape) // (2 * (param.format.block or (1, 1))[1])
            total += size * one.count * len(one.layers)
    return total


@lru_cache(maxsize=256)
def weight_lines(spec: Model, layout: Layout, holding: Holding) -> tuple[MemoryLine, ...]:
    """Bytes of the parameters that a rank of the fullest stage holds, by part. Ranks of a stage
    hold the same number.

    Of each matrix: values of the rank's part x bits / 8, and scales and zero points of its blocks;
    packed by the CPU kernels, with padding.
    """
    joined = joined_parameters(spec)
    # Stages that have as many layers of each kind hold as much.
    unlike = {
        tuple(_layers_on(one.layers, spec.num_layers, layout.pp, stage) for one in joined): stage
        for stage in range(layout.pp)
    }
    stages = [_stage_sums(spec, layout, stage, holding) for stage in unlike.values()]
    fullest = max(stages, key=lambda sums: sum(size for _, size in sums.values()))
    return tuple(
        MemoryLine(
            part,
            size,
            f"{format_count(count)} values on a rank, {8 * size / max(1, count):.2f} bits each",
        )
        for part, (count, size) in fullest.items()
        if size
    )


def _stage_sums(
    spec: Model, layout: Layout, stage: int, holding: Holding
) -> dict[str, tuple[int, int]]:
    """By part: values and bytes on a rank of the stage."""
    shard = Shard(layout, stage * layout.stage_size)
    sums: dict[str, tuple[int, int]] = {}
    for one in joined_parameters(spec):
        if is_held(one, layout, holding.drafts):
            part = "weights: MTP layers" if one.is_mtp else _part(one.params[0])
            values = one.counted(spec, shard) * sum(prod(shape) for shape in one.shapes(shard))
            before = sums.get(part, (0, 0))
            sums[part] = before[0] + values, before[1] + one.held_bytes(spec, shard, holding)
    return sums


def is_held(one: Joined, layout: Layout, drafts: bool) -> bool:
    """Whether any rank holds it. Copies take no memory, but for what the last stage looks up
    drafts from where the embedding is on another."""
    if one.is_mtp and not drafts:
        return False
    return one.params[0].copy_of is None or (layout.pp > 1 and one.role == "mtp_embed")


@lru_cache(maxsize=4096)
def _layers_on(layers: tuple[int, ...], num_layers: int, pp: int, stage: int) -> int:
    """How many of `layers` a stage has."""
    return sum(stage_of(at, num_layers, pp) == stage for at in layers)


def _part(param: ParamSpec) -> str:
    if param.layer is not None and len(param.shape) == 2:
        return _PARTS.get(param.role.partition("_")[0], "weights: attention")
    return _PARTS.get(param.role, "weights: norms and routers")
