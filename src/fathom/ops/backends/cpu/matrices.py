"""Weights as the CPU kernels hold them: packed once at load, straight from where they lie."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from fathom.errors import CheckpointError
from fathom.ops.api import Weight
from fathom.ops.backends.cpu import library
from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format

_ALIGNMENT = 64
_HUGE_PAGE = 2**21
_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float16: "float16",
}


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """`count` matrices [n, k] as csrc/matrix.h lays them out. `address`: what the kernels take."""

    matrix: library.Matrix
    memory: torch.Tensor
    address: int

    @property
    def num_rows(self) -> int:
        """Outputs of a product."""
        return int(self.matrix.n)


def pack(
    experts: Iterable[Sequence[Weight]],
    count: int,
    *,
    format: Format | None = None,
    is_gated: bool = False,
) -> PackedMatrix:
    """One packed matrix for each of `count` experts, joined from its parts by rows.

    Parts are kept in their own format, plain ones in bfloat16, unless `format` names another one
    for plain parts.

    Raises: CheckpointError where the parts of a matrix differ in format, or blocks do not fit.
    """
    matrix: library.Matrix | None = None
    memory = torch.empty(0)
    for index, parts in enumerate(experts):
        if format is not None and format.name == "fp8_block":
            parts = [
                quantize_fp8(part, format) if isinstance(part, torch.Tensor) else part
                for part in parts
            ]
        plain = _same_kind(parts, is_gated)
        if matrix is None:
            matrix = _describe(plain, count, format, is_gated)
            memory = _allocate(matrix)
        sources = (library.Source * len(plain))(*[_source(part) for part in plain])
        failed = library.load().fathom_pack(matrix, index, sources, len(plain))
        if failed is not None:
            raise CheckpointError(f"matrix {index} of a stack", found=failed.decode())
    assert matrix is not None
    return PackedMatrix(matrix, memory, ctypes.addressof(matrix))


def _same_kind(parts: Sequence[Weight], is_gated: bool) -> Sequence[Weight]:
    """The parts, multiplied out in bfloat16 where quantised ones cannot stand together."""
    plain = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(plain) == len(parts):
        return [part if part.stride(-1) == 1 else part.contiguous() for part in plain]
    words = [part for part in parts if isinstance(part, PackedInt4)]
    # Words of eight outputs are not cut, as between gate and up.
    is_even = not is_gated or sum(part.shape[0] for part in parts) % 16 == 0
    if len(words) == len(parts) and is_even and len({part.format for part in words}) == 1:
        return parts
    parts = [part.unpacked() if isinstance(part, PackedInt4) else part for part in parts]
    quantised = [part for part in parts if isinstance(part, QTensor)]
    is_whole = all(_is_whole(part) for part in quantised)
    # A strip of 64 outputs has the scales of one block of 128 rows: no block may reach from one
    # part, or from the gate, into the next.
    if quantised[0].format.name == "fp8_block":
        rows = [part.shape[0] for part in quantised]
        starts = [*accumulate(rows[:-1]), *([sum(rows) // 2] if is_gated else [])]
        is_whole &= all(start % quantised[0].block[0] == 0 for start in starts)
    if len(quantised) == len(parts) and is_whole and len({p.format for p in quantised}) == 1:
        return parts
    return [
        part if isinstance(part, torch.Tensor) else part.dequantize(torch.bfloat16)
        for part in parts
    ]


def _is_whole(part: QTensor) -> bool:
    """Whether its blocks are those of the kernels, from the first value on."""
    if part.offset != (0, 0):
        return False
    return part.format.name != "fp8_block" or part.block == (128, 128)


def _describe(
    parts: Sequence[Weight], count: int, format: Format | None, is_gated: bool
) -> library.Matrix:
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    name: str = "bfloat16"
    group = 0
    held = format if isinstance(first, torch.Tensor) else first.format
    if held is not None:
        name = str(held.name)
        if name == "int4":
            assert held.block is not None
            group = held.block[1]
    if name not in library.FORMATS:
        name = "bfloat16"
    return library.Matrix(
        format=library.FORMATS[name],
        group=group,
        is_gated=is_gated,
        experts=count,
        n=rows,
        k=first.shape[1],
    )


def _allocate(matrix: library.Matrix) -> torch.Tensor:
    """Aligned memory from the system, for large matrices on huge pages where it has them."""
    size = library.load().fathom_matrix_bytes(matrix)
    alignment = _HUGE_PAGE if size >= _HUGE_PAGE else _ALIGNMENT
    memory = torch.from_numpy(np.empty(size + alignment, dtype=np.uint8))
    matrix.data = memory.data_ptr() + -memory.data_ptr() % alignment
    matrix.num_bytes = size
    if alignment == _HUGE_PAGE:
        library.load().fathom_place_weights(matrix.data, size)
    return memory


def _source(part: Weight) -> library.Source:
    if isinstance(part, torch.Tensor):
        return library.Source(
            data=part.data_ptr(),
            rows=part.shape[0],
            k=part.shape[1],
            stride=part.stride(0),
            kind=library.SOURCES[_NAMES[part.dtype]],
        )
    if isinstance(part, PackedInt4):
        return library.Source(
            data=part.values.data_ptr(),
            scale=part.scale.data_ptr(),
            zero=part.zero.data_ptr(),
            rows=part.shape[0],
            k=part.shape[1],
            stride=part.values.stride(0),
            scale_stride=part.scale.stride(0),
            zero_stride=part.zero.stride(0),
            kind=library.SOURCES[part.packing],
            group=part.group,
        )
    zero = part.zero
    name: str = part.format.name
    return library.Source(
        data=part.data.data_ptr(),
        scale=part.scale.data_ptr(),
        zero=None if zero is None else zero.data_ptr(),
        rows=part.shape[0],
        k=part.shape[1],
        stride=part.data.stride(0),
        scale_stride=part.scale.stride(0),
        zero_stride=0 if zero is None else zero.stride(0),
        kind=library.SOURCES[name],
        group=part.block[1] if name == "int4" else 0,
    )
