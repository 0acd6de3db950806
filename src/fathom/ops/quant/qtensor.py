"""A matrix that knows its number format, so that an op can dispatch on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch

from fathom.ops.quant.nibbles import unpack_nibbles
from fathom.spec.formats import WHOLE_ROW, Format


@dataclass(frozen=True, slots=True)
class QTensor:
    """Quantised values with one scale per block: value = data * scale of its block, for int4
    (data - zero of its block) * scale.

    Shapes:
        data [..., N, K]: leading dimensions hold one matrix each (experts). float8_e4m3fn or int8.
            int4: uint8 [..., N, K / 2], the even column in the low four bits, the odd one above.
        scale [..., ceil((n0 + N) / block rows), ceil((k0 + K) / block columns)]: float32, for int4
            float16.
        zero: for int4 uint8 of the shape of scale, values 0 to 15; None for other formats.

    `offset` (n0, k0) is the place of the first value inside its first block: not (0, 0) for a slice
    that cuts through blocks of FP8. Kernels that want whole blocks check it.
    """

    data: torch.Tensor
    scale: torch.Tensor
    format: Format
    offset: tuple[int, int] = (0, 0)
    zero: torch.Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.block
        num_rows, num_columns = self.shape[-2:]
        if self.format.name == "int4" and num_columns % columns:
            raise ValueError(
                f"{num_columns} columns are not whole groups of {columns}, as int4 wants them"
            )
        wanted = (
            *self.data.shape[:-2],
            ceil((self.offset[0] + num_rows) / rows),
            ceil((self.offset[1] + num_columns) / columns),
        )
        if tuple(self.scale.shape) != wanted:
            raise ValueError(f"scale has shape {tuple(self.scale.shape)}, its data wants {wanted}")
        found = None if self.zero is None else tuple(self.zero.shape)
        if found != (wanted if self.format.zero_bits else None):
            raise ValueError(f"zero points of shape {found} do not go with {self.format.name}")

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        if self.format.block is None:
            raise ValueError(f"format {self.format.name} has no blocks")
        return self.format.block

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        *rest, columns = self.data.shape
        return torch.Size((*rest, columns * self._per_element))

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.data.device

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that hold the values: data, scale, and zero where there is one."""
        return (self.data, self.scale, *(() if self.zero is None else (self.zero,)))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> QTensor:
        """Other `tensors`, as that property gives them, in this format and at this offset."""
        data, scale, *zero = tensors
        return QTensor(data, scale, self.format, self.offset, zero[0] if zero else None)

    @property
    def _per_element(self) -> int:
        """Values in one element of `data`."""
        return 2 if self.format.name == "int4" else 1

    def __getitem__(self, index: int) -> QTensor:
        """One matrix of a stack; a view."""
        if self.data.dim() < 3:
            raise IndexError("only a stack of matrices can be indexed; use slice for a part of one")
        return self.with_tensors([one[index] for one in self.tensors])

    def slice(self, rows: slice, columns: slice) -> QTensor:
        """A part of every matrix, a view. Steps must be 1.

        The cut may go through blocks of FP8 and rows of int8, but not through groups of int4.
        Raises: ValueError.
        """
        first_row, last_row = _bounds(rows, self.shape[-2])
        first_column, last_column = _bounds(columns, self.shape[-1])
        block_rows, block_columns = self.block
        if self.format.name == "int4" and (
            first_column % block_columns or last_column % block_columns
        ):
            raise ValueError(
                f"columns {first_column} to {last_column} cut through groups of {block_columns}"
            )
        top, left = self.offset[0] + first_row, self.offset[1] + first_column
        bottom, right = self.offset[0] + last_row, self.offset[1] + last_column
        blocks = (
            ...,
            slice(top // block_rows, ceil(bottom / block_rows)),
            slice(left // block_columns, ceil(right / block_columns)),
        )
        packed = self._per_element
        # A scale of a whole row says nothing about the place in the row.
        inside = 0 if block_columns == WHOLE_ROW else left % block_columns
        return QTensor(
            self.data[..., first_row:last_row, first_column // packed : last_column // packed],
            self.scale[blocks],
            self.format,
            (top % block_rows, inside),
            None if self.zero is None else self.zero[blocks],
        )

    def to(self, device: torch.device | str) -> QTensor:
        """The same values on `device`."""
        return self.with_tensors([one.to(device) for one in self.tensors])

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The values in `dtype`, multiplied out in float32.

        Cost: a float32 copy in passing; `linear` goes by strips of rows to bound it.
        """
        if self.zero is not None:
            values = unpack_nibbles(self.data).to(torch.float32)
            grouped = values.view(*self.scale.shape, self.block[1])
            grouped -= self.zero.unsqueeze(-1)
            grouped *= self.scale.to(torch.float32).unsqueeze(-1)
            return values.to(dtype)
        values = self.data.to(torch.float32)
        values *= self._expanded_scale()
        return values.to(dtype)

    def _expanded_scale(self) -> torch.Tensor:
        """The scale of every value, [..., N or 1, K or 1] where one block covers the dimension."""
        scale = self.scale
        for dim in (-2, -1):
            start, size, block = self.offset[dim], self.shape[dim], self.block[dim]
            if block > 1 and scale.shape[dim] > 1:
                scale = scale.repeat_interleave(block, dim=dim).narrow(dim, start, size)
        return scale


def _bounds(part: slice, size: int) -> tuple[int, int]:
    start, stop, step = part.indices(size)
    if step != 1 or stop <= start:
        raise ValueError(f"wanted a slice of step 1 with at least one element, found {part}")
    return start, stop
