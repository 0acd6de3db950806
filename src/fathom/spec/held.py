"""In which format a rank holds a parameter in memory: one table of rules by role.

Loading and the byte ledger both follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fathom.spec.formats import FP8_BLOCK, INT4_GROUPS, INT8_CHANNEL, Format, int4_group

# Formats in which matrices can be held whatever the checkpoint stores.
Quantization = Literal["int8", "int4", "fp8"]

# Matrices that are never quantised: rows of the embedding are looked up, not multiplied, and the
# router decides between nearly equal experts.
_PLAIN_ROLES = ("embed", "mtp_embed", "router")
_INT8_BESIDE_INT4 = dict.fromkeys(
    ("q", "q_a", "kv_a", "kv_b", "head", "mtp_head", "mtp_project"), "int8"
)
# By what was asked for: the roles that are held otherwise, "plain" for the compute format.
# kv_a and kv_b make keys and values of every cached token, q_a the latents of queries (it is joined
# with kv_a, and q where there is no q_a), and the head every choice: they lose most to four bits
# (docs/quality.md) and are a small part of the model.
_EXCEPTIONS: Mapping[Quantization, Mapping[str, str]] = {
    "int8": {},
    "int4": _INT8_BESIDE_INT4,
    "fp8": dict.fromkeys(("kv_b", "head", "mtp_head", "mtp_project"), "plain"),
}
# Another matrix is joined below these, and no block may hold rows of both.
_JOINED_ABOVE = ("q", "q_a", "dense_gate", "expert_gate", "shared_gate")


def quantized_format(
    role: str, whole: tuple[int, ...], part: tuple[int, ...], stored: Format, asked: Quantization
) -> Format | None:
    """The format of a part of a matrix where `asked` is to be held; None for the compute format.

    `whole` and `part` are shapes. Int4 that is stored keeps its groups where the cut allows; other
    matrices have groups of 128, 64 or 32 columns, the largest that the part's width is a multiple
    of, and int8 where none is.
    """
    kind: str = "plain" if len(whole) != 2 or role in _PLAIN_ROLES else asked
    # What is stored in four bits gains nothing from eight; kv_b is multiplied out first.
    is_at_best = asked == stored.name == "int4" and role != "kv_b"
    if kind != "plain" and not is_at_best:
        kind = _EXCEPTIONS[asked].get(role, kind)
    if kind == "plain":
        return None
    if kind == "int8":
        return INT8_CHANNEL
    if kind == "fp8":
        return FP8_BLOCK if keeps_blocks(role, whole, part, FP8_BLOCK) else None
    size = stored.block[1] if stored.name == "int4" and stored.block else max(INT4_GROUPS)
    return fitting_group(part[1], size) or INT8_CHANNEL


def stored_format(
    role: str, whole: tuple[int, ...], part: tuple[int, ...], stored: Format
) -> Format | None:
    """The format of a part of a matrix that is held as it is stored, None where a cut forbids it.

    Int4 may have smaller groups than are stored, each with the scale of the one that it was in.
    """
    if stored.name == "int4":
        assert stored.block is not None
        return stored if part[1] == whole[1] else fitting_group(part[1], stored.block[1])
    if stored.name == "int8":
        return stored
    return stored if keeps_blocks(role, whole, part, stored) else None


def fitting_group(columns: int, most: int) -> Format | None:
    """Int4 in the largest groups up to `most` of which `columns` is a multiple."""
    sizes = [size for size in INT4_GROUPS if size <= most and columns % size == 0]
    return int4_group(max(sizes)) if sizes else None


def keeps_blocks(role: str, whole: tuple[int, ...], part: tuple[int, ...], format: Format) -> bool:
    """Whether, on every rank alike, the part starts and ends where blocks do. Columns may also
    lie inside one block: its scale is then theirs alone."""
    assert format.block is not None
    block_rows, block_columns = format.block
    rows, columns = part
    is_last = rows == whole[0] and role not in _JOINED_ABOVE
    keeps_rows = rows % block_rows == 0 or is_last
    return keeps_rows and (
        columns == whole[1] or columns % block_columns == 0 or block_columns % columns == 0
    )
