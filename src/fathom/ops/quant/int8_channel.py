"""Signed 8-bit values with one float32 scale for each row (output channel), symmetric.

Source: the scheme of LLM.int8() for weights (arXiv 2208.07339, section 2), without its outliers.
"""

from __future__ import annotations

import torch

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import INT8_CHANNEL

INT8_MAX = 127.0
# Values that are worked on at a time: small enough for a core's cache.
_STRIP_VALUES = 2**18


def quantize_int8(values: torch.Tensor) -> QTensor:
    """`values` [..., N, K] rounded to nearest, each row scaled to its largest magnitude.

    A row of zeros gets scale 1. Raises: ValueError where values are not finite.
    Cost: beyond the result, a few float32 copies of a strip of rows.
    """
    rows = values.reshape(-1, values.shape[-1])
    data = torch.empty(rows.shape, dtype=torch.int8, device=values.device)
    scale = torch.empty(rows.shape[0], 1, dtype=torch.float32, device=values.device)
    strip = max(1, _STRIP_VALUES // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], strip):
        part = slice(start, start + strip)
        data[part], scale[part] = _quantize(rows[part].to(torch.float32))
    return QTensor(data.view(values.shape), scale.view(*values.shape[:-1], 1), INT8_CHANNEL)


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = values.abs().amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("infinities or NaN cannot be held in int8")
    # The quotient of a subnormal would be zero.
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(largest > 0, (largest / INT8_MAX).clamp_min(smallest), 1.0)
    return (values / scale).round_().clamp_(-INT8_MAX, INT8_MAX), scale
