"""FP8 e4m3 with float32 scales: 128x128 blocks for weights, 1x128 for rows of activations.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3.2. As in its checkpoints the
stored scale is the inverse of the quantisation factor, so values are data * scale.
"""

from __future__ import annotations

from math import ceil

import torch

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import FP8_BLOCK, Format

FP8_MAX = 448.0  # largest finite float8_e4m3fn
# Activations: each row has one scale for each 128 columns.
FP8_ROWS = Format("fp8_block", 8, (1, 128), 32)


def quantize_fp8(values: torch.Tensor, format: Format = FP8_BLOCK) -> QTensor:
    """`values` [..., N, K] rounded to nearest in blocks scaled to their largest magnitude.

    Blocks at the edges may be smaller. A block of zeros gets scale 1; a block with NaN or inf gives
    NaN throughout, because no finite scale holds it.
    """
    if format.block is None or format.bits != 8:
        raise ValueError(f"wanted an FP8 format with blocks, found {format}")
    rows, columns = format.block
    num_rows, num_columns = values.shape[-2:]
    down, across = ceil(num_rows / rows), ceil(num_columns / columns)
    padding = (0, across * columns - num_columns, 0, down * rows - num_rows)
    padded = torch.nn.functional.pad(values.to(torch.float32), padding)
    padded = padded.view(*values.shape[:-2], down, rows, across, columns)
    largest = padded.abs().amax(dim=(-3, -1))
    scale = torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))
    scaled = padded / scale[..., :, None, :, None]
    # Division may round a hair over the largest value, which the cast would turn into NaN.
    scaled = scaled.clamp(-FP8_MAX, FP8_MAX).flatten(-2).flatten(-3, -2)
    data = scaled[..., :num_rows, :num_columns].contiguous().to(torch.float8_e4m3fn)
    return QTensor(data, scale, format)
