"""Int4 matrices between the layouts of published checkpoints (`spec/stored.py`) and QTensor.

Bytes are moved, never values: what is read equals what was stored, and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fathom.ops.quant.nibbles import pack_nibbles, unpack_nibbles
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format
from fathom.spec.stored import Packing

# The column, of eight, that each four bits of a 32-bit word hold, from the lowest up (AutoAWQ,
# awq/utils/packing_utils.py, "gemm"); the first of each pair is the low half of a byte.
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_LOW_HALVES = 0x0F0F0F0F  # of the bytes of a word


@dataclass(frozen=True, slots=True)
class PackedParts:
    """The tensors of one packed matrix, whole, as they are stored."""

    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def unpack_matrix(
    parts: PackedParts,
    packing: Packing,
    format: Format,
    rows: slice,
    columns: slice,
) -> QTensor:
    """The values [N, K] of `rows` and `columns`, which are bounds and whole groups of `format`.

    `format` may have smaller groups than are stored: scales and zero points are then repeated.
    """
    assert format.block is not None
    group = format.block[1]
    num_columns = parts.values.shape[0] * (1 if packing == "awq" else 8)
    stored_group = num_columns // parts.scale.shape[0]
    first, last = columns.start // stored_group, -(-columns.stop // stored_group)
    zero = _rows(_zero(parts.zero[first:last], packing), rows)
    scale = _rows(parts.scale[first:last], rows)
    if group != stored_group:
        start = columns.start // group - first * stored_group // group
        length = (columns.stop - columns.start) // group
        zero, scale = (
            one.repeat_interleave(stored_group // group, dim=1).narrow(1, start, length)
            for one in (zero, scale)
        )
    if packing == "awq":
        data = _awq_values(parts.values[columns], rows)
    else:
        words = parts.values[columns.start // 8 : columns.stop // 8, rows]
        # Four bytes a word, each with two inputs in the order of QTensor.
        data = _bytes(words).permute(1, 0, 2).reshape(words.shape[1], -1)
    return QTensor(data, scale.contiguous(), format, zero=zero.contiguous())


def pack_awq(matrix: QTensor) -> PackedParts:
    """What AutoAWQ stores for `matrix` [N, K]. N must be a multiple of 8."""
    assert matrix.zero is not None
    num_rows, num_pairs = matrix.data.shape
    eights = matrix.data.reshape(num_rows // 8, 8, num_pairs)
    halves = matrix.data.new_empty(2, num_pairs, num_rows // 8, 4)
    for place, column in enumerate(_AWQ_COLUMNS):
        halves[place % 2, ..., place // 2].copy_(eights[:, column].t())
    low, high = halves.view(torch.int32).squeeze(-1)
    values = low.new_empty(2 * num_pairs, num_rows // 8)
    values[0::2] = (low & _LOW_HALVES) | ((high & _LOW_HALVES) << 4)
    values[1::2] = ((low >> 4) & _LOW_HALVES) | (high & ~_LOW_HALVES)
    return PackedParts(
        values=values,
        scale=matrix.scale.t().contiguous(),
        zero=_awq_words(matrix.zero.t()),
    )


def _bytes(words: torch.Tensor) -> torch.Tensor:
    """The four bytes of each 32-bit word, the lowest first, [..., 4]."""
    return words.contiguous().view(torch.uint8).view(*words.shape, 4)


def _rows(values: torch.Tensor, rows: slice) -> torch.Tensor:
    return values[:, rows].t()


def _zero(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Zero points [groups, N] of stored ones [groups, N / 8]."""
    nibbles = unpack_nibbles(_bytes(words).flatten(-2))
    if packing == "awq":
        found = torch.empty_like(nibbles)
        for place, column in enumerate(_AWQ_COLUMNS):
            found[:, column::8] = nibbles[:, place::8]
        return found
    # A zero point of 0 was stored as -1, of which four bits are left.
    return (nibbles + 1) & 15 if packing == "gptq" else nibbles


def _awq_values(words: torch.Tensor, rows: slice) -> torch.Tensor:
    """QTensor's data [rows, K / 2] of words [K, N / 8]: the outputs of a word go to rows, and two
    inputs, one word below the other, into a byte."""
    first = rows.start // 8
    stored = words[:, first : -(-rows.stop // 8)]
    even, odd = stored[0::2], stored[1::2]
    low = (even & _LOW_HALVES) | ((odd & _LOW_HALVES) << 4)
    high = ((even >> 4) & _LOW_HALVES) | (odd & ~_LOW_HALVES)
    num_pairs, num_words = low.shape
    out = torch.empty(num_words, 8, num_pairs, dtype=torch.uint8, device=words.device)
    for halves, columns in ((low, _AWQ_COLUMNS[0::2]), (high, _AWQ_COLUMNS[1::2])):
        # One strided copy a column: far quicker than scattering by an index.
        for byte, column in zip(_bytes(halves).unbind(-1), columns, strict=True):
            out[:, column].copy_(byte.t())
    return out.view(-1, num_pairs)[rows.start - 8 * first : rows.stop - 8 * first]


def _awq_words(values: torch.Tensor) -> torch.Tensor:
    """Words [R, N / 8] int32 of values [R, N] uint8."""
    eights = values.reshape(values.shape[0], -1, 8)[..., list(_AWQ_COLUMNS)]
    return pack_nibbles(eights).view(torch.int32).squeeze(-1)
