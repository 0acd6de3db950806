"""The parameter table's row. One table drives open, verify, synthetic weights, sharding, memory
planning and FLOP counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from fathom.errors import CheckpointError
from fathom.spec.formats import FLOAT32, Format
from fathom.spec.held import Quantization, quantized_format, stored_format
from fathom.spec.parallel import Shard, ShardRule, owned_slice, stage_of
from fathom.spec.stored import Packing, StoredPart, stored_parts

# The router's correction bias decides between nearly equal experts: never rounded to 16 bits.
CORRECTION_BIAS = "correction_bias"
# Decode multiplies by this matrix one head at a time, without a kernel for blocks.
_ALWAYS_DEQUANTISED = ("kv_b",)


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter of the model.

    `name` as in a checkpoint that is not quantised; `shape` of its values; `layer` None outside the
    layers; `role` a short word for what it does (`q_b`, `expert_gate`, ...); `expert` its index
    where it belongs to one. `parts` are the tensors that a checkpoint stores for it, for int4 by
    `packing`.

    `copy_of` names the tensor that this one repeats (the MTP layers share the embedding and the
    head, V3 report section 2.2): it may be absent from a checkpoint, and takes no memory.

    `max_parts`: the most parts that a cut may make (heads of keys and values).
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    shard: ShardRule
    layer: int | None
    role: str
    expert: int | None = None
    copy_of: str | None = None
    packing: Packing | None = None
    max_parts: int | None = None

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        """The tensors that a checkpoint stores for this, the one with the values first."""
        return stored_parts(self.name, self.shape, self.format, self.packing)

    @property
    def scale_name(self) -> str | None:
        """Name of the tensor of scales that is stored with this one."""
        return next((part.name for part in self.parts if part.role == "scale"), None)

    @property
    def num_elements(self) -> int:
        """Elements of the whole tensor, scales not counted."""
        return prod(self.shape)

    def owned(self, shard: Shard) -> tuple[slice, ...]:
        """The part that `shard` owns where its stage and its group of experts hold this at all."""
        return owned_slice(
            self.shard,
            self.shape,
            shard,
            is_expert=self.expert is not None,
            max_parts=self.max_parts,
        )

    def is_on(self, shard: Shard, num_layers: int, num_experts: int) -> bool:
        """Whether `shard` holds a part of this parameter of a model of so many layers and routed
        experts: the embedding is on the first stage, what follows the layers on the last."""
        layer = num_layers - 1 if self.layer is None else self.layer
        if self.role == "embed":
            layer = 0
        if stage_of(layer, num_layers, shard.layout.pp) != shard.stage:
            return False
        each = num_experts // shard.layout.ep
        return self.expert is None or self.expert // each == shard.expert_group

    def local_shape(self, shard: Shard) -> tuple[int, ...]:
        """Shape of the part that `shard` owns."""
        return tuple(part.stop - part.start for part in self.owned(shard))

    def local_format(
        self,
        shard: Shard,
        compute: Format,
        *,
        dequantize: bool,
        quantization: Quantization | None = None,
    ) -> Format:
        """The format in which `shard` holds its part in memory.

        With `quantization`, that of the rules in `spec/held.py`. Without, quantised matrices stay
        as they are stored, unless `dequantize` says that the device cannot use them, or a cut falls
        inside a block that other ranks or matrices share. The rest is held in the `compute` format,
        except the router's correction bias.
        """
        if self.role == CORRECTION_BIAS:
            return FLOAT32
        whole, part = self.shape, self.local_shape(shard)
        if quantization is not None:
            return quantized_format(self.role, whole, part, self.format, quantization) or compute
        if self.format.block is None or dequantize or self.role in _ALWAYS_DEQUANTISED:
            return compute
        return stored_format(self.role, whole, part, self.format) or compute

    def local_bytes(
        self,
        shard: Shard,
        compute: Format,
        *,
        dequantize: bool,
        quantization: Quantization | None = None,
    ) -> int:
        """Bytes that `shard` holds of this parameter, scales included; 0 for copies."""
        if self.copy_of is not None:
            return 0
        held = self.local_format(shard, compute, dequantize=dequantize, quantization=quantization)
        return held.num_bytes(self.local_shape(shard))


def as_stored(
    rows: Iterable[ParamSpec],
    weight_format: Format,
    dtype: Format,
    packing: Packing | None,
    kept: tuple[str, ...],
) -> Iterator[ParamSpec]:
    """The rows with the packing of quantised ones, and plain where the checkpoint keeps them so.

    The last four as in ModelSpec.

    Raises: CheckpointError where a matrix does not fit the layout.
    """
    pattern = re.compile("|".join(kept)) if kept else None
    for row in rows:
        if row.format.block is None or row.format != weight_format:
            yield row
        elif pattern is not None and pattern.search(row.name.removesuffix(".weight")):
            yield replace(row, format=dtype)
        elif packing is not None:
            _check_packs(row)
            yield replace(row, packing=packing)
        else:
            yield row


def _check_packs(row: ParamSpec) -> None:
    assert row.format.block is not None
    num_rows, columns = row.shape
    group = row.format.block[1]
    if columns % group or num_rows % 8:
        raise CheckpointError(
            f"config.json: quantization_config: {row.name} cannot be stored in groups of {group}",
            found=f"{columns} inputs and {num_rows} outputs",
            wanted=f"inputs in whole groups of {group}, and outputs in eights",
            fix="a smaller group_size, or the module's name in modules_to_not_convert",
        )
