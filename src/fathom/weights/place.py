"""From what a checkpoint stores to what a rank holds: copies, conversions and quantisation."""

from __future__ import annotations

import torch

from fathom.errors import CheckpointError
from fathom.ops.quant.into import quantize
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from fathom.spec.held import Quantization, fitting_group
from fathom.spec.parallel import Shard
from fathom.spec.params import ParamSpec

_FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def format_of(dtype: torch.dtype) -> Format:
    """The plain format whose elements are of `dtype`."""
    return _FORMATS[dtype]


def torch_dtype(plain: Format) -> torch.dtype:
    """The element type of a plain format."""
    return next(dtype for dtype, known in _FORMATS.items() if known == plain)


def place(
    param: ParamSpec,
    value: torch.Tensor | QTensor,
    shard: Shard,
    *,
    dtype: torch.dtype,
    device: torch.device,
    dequantize: bool,
    quantization: Quantization | None = None,
) -> torch.Tensor | QTensor:
    """A copy of a rank's part on `device`, in the format that the byte ledger counts.

    Raises: CheckpointError where values cannot be held in that format.
    """
    held = param.local_format(
        shard, format_of(dtype), dequantize=dequantize, quantization=quantization
    )
    if isinstance(value, QTensor) and value.format == held:
        # Where one block covers the part, its place in that block no longer matters.
        tensors = [_copy(one, device) for one in value.tensors]
        return QTensor(tensors[0], tensors[1], held, zero=tensors[2] if tensors[2:] else None)
    if isinstance(value, torch.Tensor) and held.block is None:
        return _copy(value, device, torch_dtype(held))
    return convert(param.name, value.to(device), held)


def convert(name: str, value: torch.Tensor | QTensor, format: Format) -> torch.Tensor | QTensor:
    """`value`, of the parameter `name`, in another format; `value` itself where it is in it.

    Raises: CheckpointError where values cannot be held in it.
    """
    if isinstance(value, QTensor):
        if value.format == format:
            return value
        if format.block is None:
            return value.dequantize(torch_dtype(format))
        value = value.dequantize(torch.float32)
    try:
        return quantize(value, format) if format.block else value.to(torch_dtype(format))
    except ValueError as error:
        raise CheckpointError(
            f"{name} cannot be held in {format.name}",
            found=str(error),
            fix="fetch its file again, or load the model without quantising it",
        ) from error


def part_of(value: torch.Tensor | QTensor, part: tuple[slice, ...]) -> torch.Tensor | QTensor:
    """The part of a whole parameter, a view where that is possible.

    A cut through groups of int4 gives smaller groups, and where none fit float32 values.
    """
    if isinstance(value, torch.Tensor):
        return value[part]
    rows, columns = part
    if value.format.name != "int4" or value.shape[1] == columns.stop - columns.start:
        return value.slice(rows, columns)
    size = value.block[1]
    finer = fitting_group(columns.stop - columns.start, size)
    if finer is None or finer.block is None:
        return value.slice(rows, slice(None)).dequantize(torch.float32)[:, columns]
    data, *rest = value.tensors
    scale, zero = (one.repeat_interleave(size // finer.block[1], dim=-1) for one in rest)
    return QTensor(data, scale, finer, zero=zero).slice(rows, columns)


def _copy(
    value: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A contiguous copy that keeps no file mapped."""
    wanted = value.dtype if dtype is None else dtype
    return torch.empty(value.shape, dtype=wanted, device=device).copy_(value)
