"""How checkpoints store one matrix or vector: the tensors that stand for it.

Layouts of int4 (K inputs, N outputs, groups of G inputs), as their tools write them:

    awq    qweight int32 [K, N/8], qzeros int32 [K/G, N/8], scales float16 [K/G, N]; of each eight
           columns, the four bits from the lowest up hold columns 0 2 4 6 1 3 5 7
    gptq   qweight int32 [K/8, N], qzeros int32 [K/G, N/8], scales float16 [K/G, N], and where it
           is stored g_idx int32 [K], the group of each input; zero points are stored minus one
    gptq_v2   the same with zero points as they are
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.spec.formats import Format

Packing = Literal["awq", "gptq", "gptq_v2"]
PartRole = Literal["values", "scale", "zero", "order"]

_PLAIN = ("BF16", "F32", "F16")


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One tensor of a checkpoint: its name and shape there, and the safetensors types that it may
    have. An `is_optional` one may be absent."""

    role: PartRole
    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    is_optional: bool = False


def stored_parts(
    name: str, shape: tuple[int, ...], format: Format, packing: Packing | None
) -> tuple[StoredPart, ...]:
    """The tensors that hold the parameter `name`, the one with its values first."""
    if format.name == "int4":
        return _packed(name.removesuffix(".weight"), shape, format, packing)
    scale_shape = format.scale_shape(shape)
    if scale_shape is None:
        return (StoredPart("values", name, shape, _PLAIN),)
    if format.name == "int8":
        values = StoredPart("values", name, shape, ("I8",))
        return values, StoredPart("scale", f"{name}_scale", scale_shape, ("F32", "BF16", "F16"))
    values = StoredPart("values", name, shape, ("F8_E4M3",))
    return values, StoredPart("scale", f"{name}_scale_inv", scale_shape, ("F32",))


def _packed(
    module: str, shape: tuple[int, ...], format: Format, packing: Packing | None
) -> tuple[StoredPart, ...]:
    assert packing is not None, "int4 is stored packed"
    assert format.block is not None
    rows, columns = shape
    groups = columns // format.block[1]
    packed = (columns, rows // 8) if packing == "awq" else (columns // 8, rows)
    parts = (
        StoredPart("values", f"{module}.qweight", packed, ("I32",)),
        StoredPart("scale", f"{module}.scales", (groups, rows), ("F16",)),
        StoredPart("zero", f"{module}.qzeros", (groups, rows // 8), ("I32",)),
    )
    if packing == "awq":
        return parts
    order = StoredPart("order", f"{module}.g_idx", (columns,), ("I32",), is_optional=True)
    return (*parts, order)
