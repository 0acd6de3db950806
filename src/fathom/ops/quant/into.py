"""Plain matrices into any quantised format."""

from __future__ import annotations

import torch

from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.int4_group import quantize_int4
from fathom.ops.quant.int8_channel import quantize_int8
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format


def quantize(values: torch.Tensor, format: Format) -> QTensor:
    """`values` [..., N, K] in a format that has blocks. Raises: ValueError as that format's own."""
    if format.name == "int8":
        return quantize_int8(values)
    if format.name == "int4":
        assert format.block is not None
        return quantize_int4(values, format.block[1])
    return quantize_fp8(values, format)
