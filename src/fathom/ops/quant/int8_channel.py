"""Signed 8-bit values with one float32 scale for each row (output channel), symmetric.

Source: the scheme of LLM.int8() for weights (arXiv 2208.07339, section 2), without its outliers.
"""

from __future__ import annotations

import torch

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import INT8_CHANNEL

INT8_MAX = 127.0


def quantize_int8(values: torch.Tensor) -> QTensor:
    """`values` [..., N, K] rounded to nearest, each row scaled to its largest magnitude.

    A row of zeros gets scale 1. Raises: ValueError where values are not finite.
    """
    values = values.to(torch.float32)
    largest = values.abs().amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("infinities or NaN cannot be held in int8")
    # The quotient of a subnormal would be zero.
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(largest > 0, (largest / INT8_MAX).clamp_min(smallest), 1.0)
    scaled = (values / scale).round_().clamp_(-INT8_MAX, INT8_MAX)
    return QTensor(scaled.to(torch.int8), scale, INT8_CHANNEL)
