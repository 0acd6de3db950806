"""Int4 matrices as published checkpoints store them (`spec/stored.py`), and back.

Bytes are moved, never values: what is read equals what was stored.
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
class PackedInt4:
    """A matrix [N, K] in 32-bit words. N is a multiple of 8, K one of the groups of `format`.

    Shapes, for groups of G: values int32 [K, N / 8] for AWQ, else [K / 8, N]; scale float16
    [K / G, N]; zero int32 [K / G, N / 8]. Views of the file where that is possible.
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    packing: Packing
    format: Format

    def __post_init__(self) -> None:
        num_rows, columns = self.shape
        groups = columns // self.group
        words = (columns, num_rows // 8) if self.packing == "awq" else (columns // 8, num_rows)
        found = tuple(tuple(one.shape) for one in (self.values, self.scale, self.zero))
        wanted = (words, (groups, num_rows), (groups, num_rows // 8))
        if found != wanted or columns % self.group or num_rows % 8:
            raise ValueError(f"shapes {found} of an {self.packing} matrix in {self.format.name}")

    @property
    def shape(self) -> torch.Size:
        """N and K."""
        is_awq = self.packing == "awq"
        return torch.Size((self.scale.shape[1], self.values.shape[0] * (1 if is_awq else 8)))

    @property
    def group(self) -> int:
        """Inputs that share a scale and a zero point."""
        assert self.format.block is not None
        return self.format.block[1]

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.values.device

    def part(self, rows: slice, columns: slice, format: Format) -> PackedInt4 | QTensor:
        """The values of `rows` and `columns`, which are bounds and whole groups of `format`; words
        where `rows` are whole words.

        `format` may have smaller groups than these: scales and zero points are then repeated.
        """
        assert format.block is not None
        group, stored = format.block[1], self.group
        first, last = columns.start // stored, -(-columns.stop // stored)
        words = slice(rows.start // 8, -(-rows.stop // 8))
        whole = slice(8 * words.start, 8 * words.stop)
        scale, zero = self.scale[first:last, whole], self.zero[first:last, words]
        if group != stored:
            start = columns.start // group - first * stored // group
            length = (columns.stop - columns.start) // group
            scale, zero = (
                one.repeat_interleave(stored // group, dim=0).narrow(0, start, length)
                for one in (scale, zero)
            )
        if self.packing == "awq":
            values = self.values[columns, words]
        else:
            values = self.values[columns.start // 8 : columns.stop // 8, whole]
        found = PackedInt4(values, scale, zero, self.packing, format)
        if whole == rows:
            return found
        inner = slice(rows.start - whole.start, rows.stop - whole.start)
        return found.unpacked().slice(inner, slice(None))

    def unpacked(self) -> QTensor:
        """The same values; a copy."""
        zero = _zero(self.zero, self.packing).t().contiguous()
        if self.packing == "awq":
            data = _awq_values(self.values)
        else:
            # Four bytes a word, each with two inputs in the order of QTensor.
            data = _bytes(self.values).permute(1, 0, 2).reshape(self.shape[0], -1)
        return QTensor(data, self.scale.t().contiguous(), self.format, zero=zero)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """See `QTensor.dequantize`."""
        return self.unpacked().dequantize(dtype)


def pack_awq(matrix: QTensor) -> PackedInt4:
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
    scale, zero = matrix.scale.t().contiguous(), _awq_words(matrix.zero.t())
    return PackedInt4(values, scale, zero, "awq", matrix.format)


def _bytes(words: torch.Tensor) -> torch.Tensor:
    """The four bytes of each 32-bit word, the lowest first, [..., 4]."""
    return words.contiguous().view(torch.uint8).view(*words.shape, 4)


def _zero(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Zero points [groups, N] of stored ones [groups, N / 8]."""
    nibbles = unpack_nibbles(_bytes(words).flatten(-2))
    if packing == "awq":
        found = torch.empty_like(nibbles)
        for place, column in enumerate(_AWQ_COLUMNS):
            found[:, column::8] = nibbles[:, place::8]
        return found
    # One less was stored. Of -1 four bits are left: a stored 15 is 0, for no tool makes 16.
    return (nibbles + 1) & 15 if packing == "gptq" else nibbles


def _awq_values(words: torch.Tensor) -> torch.Tensor:
    """QTensor's data [N, K / 2] of words [K, N / 8]: the outputs of a word go to rows, and two
    inputs, one word below the other, into a byte."""
    even, odd = words[0::2], words[1::2]
    low = (even & _LOW_HALVES) | ((odd & _LOW_HALVES) << 4)
    high = ((even >> 4) & _LOW_HALVES) | (odd & ~_LOW_HALVES)
    num_pairs, num_words = low.shape
    out = torch.empty(num_words, 8, num_pairs, dtype=torch.uint8, device=words.device)
    for halves, columns in ((low, _AWQ_COLUMNS[0::2]), (high, _AWQ_COLUMNS[1::2])):
        # One strided copy a column: far quicker than scattering by an index.
        for byte, column in zip(_bytes(halves).unbind(-1), columns, strict=True):
            out[:, column].copy_(byte.t())
    return out.view(-1, num_pairs)


def _awq_words(values: torch.Tensor) -> torch.Tensor:
    """Words [R, N / 8] int32 of values [R, N] uint8."""
    eights = values.reshape(values.shape[0], -1, 8)[..., list(_AWQ_COLUMNS)]
    return pack_nibbles(eights).view(torch.int32).squeeze(-1)
