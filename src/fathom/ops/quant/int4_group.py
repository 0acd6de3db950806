"""Unsigned 4-bit values in groups of columns, each with a scale and a zero point.

The range of a group is that of its values. Clipping it where that lessens the squared error, an
idea of AWQ (arXiv 2306.00978, section 3.2), which weighs errors by activations, doubled the
embedded model's divergence in groups of 128 where weights alone decided: rounding errors have
either sign and cancel in a sum, and what is clipped off the largest weights does not.
"""

from __future__ import annotations

import torch

from fathom.ops.quant.nibbles import pack_nibbles
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import int4_group

_LARGEST = 15
# Values that are worked on at a time: small enough for a core's cache.
_STRIP_VALUES = 2**18
_SMALLEST_SCALE = 2.0**-24  # of float16


def quantize_int4(values: torch.Tensor, group: int) -> QTensor:
    """`values` [..., N, K] rounded to nearest in groups of `group` columns.

    Zero is always a value of a group, exactly. Raises: ValueError where K is not a multiple of
    `group`, or values are not finite or too large for float16 scales (about 10^6).
    Cost: beyond the result, a few float32 copies of a strip of rows.
    """
    format = int4_group(group)
    *leading, num_columns = values.shape
    if num_columns % group:
        raise ValueError(f"{num_columns} columns are not whole groups of {group}")
    num_groups = num_columns // group
    rows = values.reshape(-1, num_columns)
    data = torch.empty(rows.shape[0], num_columns // 2, dtype=torch.uint8, device=values.device)
    scale = torch.empty(rows.shape[0], num_groups, dtype=torch.float16, device=values.device)
    zero = torch.empty_like(scale, dtype=torch.uint8)
    strip = max(1, _STRIP_VALUES // num_columns)
    for start in range(0, rows.shape[0], strip):
        part = slice(start, start + strip)
        grouped = rows[part].to(torch.float32).view(-1, num_groups, group)
        levels, scale[part], zero[part] = _quantize(grouped)
        data[part] = pack_nibbles(levels.to(torch.uint8).flatten(-2))
    return QTensor(
        data.view(*leading, num_columns // 2),
        scale.view(*leading, num_groups),
        format,
        zero=zero.view(*leading, num_groups),
    )


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels [R, G, group], scales and zero points [R, G], in float32.

    csrc/pack.cpp does the same, operation by operation, and gives the same levels.
    """
    low = values.amin(dim=-1, keepdim=True).clamp_max(0.0)
    high = values.amax(dim=-1, keepdim=True).clamp_min(0.0)
    scale = (high - low) * (1 / _LARGEST)
    # Rounded first: the levels must belong to the scale that is kept.
    scale = torch.where(scale == 0, 1.0, scale.clamp_min(_SMALLEST_SCALE)).half().float()
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("values that are not finite, or too large for int4's float16 scales")
    zero = (-low / scale).round_().clamp_(0, _LARGEST)
    levels = (values / scale).round_().add_(zero).clamp_(0, _LARGEST)
    return levels, scale.squeeze(-1), zero.squeeze(-1)
