"""Weights as the reference backend keeps them: plain or quantised tensors, joined and stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from fathom.errors import CheckpointError
from fathom.ops.quant.into import quantize
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format

Weight = torch.Tensor | QTensor


def joined(
    lent: Sequence[Weight | PackedInt4], dtype: torch.dtype, format: Format | None = None
) -> Weight:
    """Matrices of equal width, one under the other; a copy, plain ones in `dtype`.

    Quantised ones stay so where no block would hold rows of two of them.

    Plain ones are quantised to `format` where one is given.
    """
    parts = [part.unpacked() if isinstance(part, PackedInt4) else part for part in lent]
    if format is not None:
        parts = [quantize(p, format) if isinstance(p, torch.Tensor) else p for p in parts]
    quantised = [part for part in parts if isinstance(part, QTensor)]
    if len(quantised) == len(parts) and _shares_blocks(quantised):
        joined = zip(*(part.tensors for part in quantised), strict=True)
        return quantised[0].with_tensors([torch.cat(tensors) for tensors in joined])
    return torch.cat([_plain(part, dtype) for part in parts])


def stacked(
    experts: Iterable[Sequence[Weight | PackedInt4]],
    count: int,
    dtype: torch.dtype,
    format: Format | None = None,
) -> Weight:
    """One matrix an expert, [E, N, K], each joined as by `joined`.

    Raises: CheckpointError where experts are of different formats.
    """
    matrices = iter(experts)
    first = joined(next(matrices), dtype, format)
    if isinstance(first, torch.Tensor):
        stack = first.new_empty(count, *first.shape)
        stack[0] = first
        for index, parts in enumerate(matrices, 1):
            stack[index] = _plain(joined(parts, dtype, format), dtype)
        return stack
    stacks = [one.new_empty(count, *one.shape) for one in first.tensors]
    for index, part in enumerate(chain([first], (joined(p, dtype, format) for p in matrices))):
        if not isinstance(part, QTensor) or (part.format, part.offset) != (
            first.format,
            first.offset,
        ):
            raise CheckpointError(
                f"a matrix of expert {index}",
                found=part.format.name if isinstance(part, QTensor) else str(part.dtype),
                wanted=f"{first.format.name}, like expert 0",
            )
        for stack, one in zip(stacks, part.tensors, strict=True):
            stack[index] = one
    return first.with_tensors(stacks)


def _plain(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    return weight.dequantize(dtype) if isinstance(weight, QTensor) else weight.to(dtype)


def _shares_blocks(parts: Sequence[QTensor]) -> bool:
    """Whether the parts' blocks tile the merged matrix, the last part's edge aside."""
    first = parts[0]
    return all(
        part.format == first.format and part.offset == (0, first.offset[1]) for part in parts
    ) and all(part.shape[0] % part.block[0] == 0 for part in parts[:-1])
