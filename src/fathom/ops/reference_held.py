"""Weights as the reference backend keeps them: plain or quantised tensors, joined and stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fathom.errors import CheckpointError, ConfigError
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format

Weight = torch.Tensor | QTensor


def joined(parts: Sequence[Weight], dtype: torch.dtype, format: Format | None = None) -> Weight:
    """Matrices of equal width, one under the other; a copy, plain ones in `dtype`.

    Quantised ones stay so where no block would hold rows of two of them.

    Raises: ConfigError where they are to be quantised, which this backend does not do.
    """
    if format is not None:
        raise ConfigError(
            "--quantization",
            found=f"{format.name} on the reference backend, which does not quantise",
            wanted="a checkpoint in that format, or the cpu backend",
        )
    quantised = [part for part in parts if isinstance(part, QTensor)]
    if len(quantised) == len(parts) and _shares_blocks(quantised):
        return QTensor(
            torch.cat([part.data for part in quantised]),
            torch.cat([part.scale for part in quantised]),
            quantised[0].format,
            quantised[0].offset,
        )
    return torch.cat([_plain(part, dtype) for part in parts])


def stacked(
    experts: Iterable[Sequence[Weight]],
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
    data = first.data.new_empty(count, *first.data.shape)
    scale = first.scale.new_empty(count, *first.scale.shape)
    data[0], scale[0] = first.data, first.scale
    for index, parts in enumerate(matrices, 1):
        part = joined(parts, dtype, format)
        if not isinstance(part, QTensor) or (part.format, part.offset) != (
            first.format,
            first.offset,
        ):
            raise CheckpointError(
                f"a matrix of expert {index}",
                found=part.format.name if isinstance(part, QTensor) else str(part.dtype),
                wanted=f"{first.format.name}, like expert 0",
            )
        data[index], scale[index] = part.data, part.scale
    return QTensor(data, scale, first.format, first.offset)


def _plain(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    return weight.dequantize(dtype) if isinstance(weight, QTensor) else weight.to(dtype)


def _shares_blocks(parts: Sequence[QTensor]) -> bool:
    """Whether the parts' blocks tile the merged matrix, the last part's edge aside."""
    first = parts[0]
    return all(
        part.format == first.format and part.offset == (0, first.offset[1]) for part in parts
    ) and all(part.shape[0] % part.block[0] == 0 for part in parts[:-1])
