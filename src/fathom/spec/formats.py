"""Number formats as held in memory: how many bytes a tensor of any shape takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

FormatName = Literal[
    "float32", "bfloat16", "float16", "fp8_block", "int8", "int4", "fp8_latent", "fp8"
]

# Columns of a block that is a whole row, however long: wider than any matrix.
WHOLE_ROW = 2**40
INT4_GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Format:
    """How one tensor's elements are stored.

    `bits` per element; `block` (rows, columns) that share one scale, None for formats without
    scales; `scale_bits` per scale, and `zero_bits` per zero point that goes with it (0 where values
    are symmetric). Matrices only may be blocked.
    """

    name: FormatName
    bits: int
    block: tuple[int, int] | None = None
    scale_bits: int = 0
    zero_bits: int = 0

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Shape of the scale tensor that goes with `shape`, None where there is none."""
        if self.block is None:
            return None
        rows, columns = shape
        return ceil(rows / self.block[0]), ceil(columns / self.block[1])

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the elements, of their scales and of their zero points."""
        scales = self.scale_shape(shape)
        per_scale = self.scale_bits + self.zero_bits
        scale_bytes = prod(scales) * per_scale // 8 if scales else 0
        return prod(shape) * self.bits // 8 + scale_bytes


FLOAT32 = Format("float32", 32)
BFLOAT16 = Format("bfloat16", 16)
FLOAT16 = Format("float16", 16)
# DeepSeek-V3 technical report, section 3.3: weights e4m3 with one float32 scale per 128x128 block,
# stored beside the weight as `weight_scale_inv` (multiply to get the value back).
FP8_BLOCK = Format("fp8_block", 8, (128, 128), 32)
# Symmetric: value = data * scale, one float32 scale for each row (output channel).
INT8_CHANNEL = Format("int8", 8, (1, WHOLE_ROW), 32)


def int4_group(size: int) -> Format:
    """Unsigned 4-bit values in groups of `size` columns of a row: value = (data - zero) * scale.

    Scales are float16; zero points 0 to 15, a byte each. Raises: ValueError for other sizes than
    32, 64 and 128.
    """
    if size not in INT4_GROUPS:
        raise ValueError(f"int4 groups have 32, 64 or 128 columns, not {size}")
    return Format("int4", 4, (1, size), 16, 8)


# A cell of the latent cache in FP8: latents e4m3 with one float32 scale for each 128 of them, and
# the rotated part of the key, which carries positions and rounds badly, in bfloat16.
FP8_LATENT = Format("fp8_latent", 8, (1, 128), 32)

# A cache in FP8 without scales of its own, as other engines keep keys and values: for plans alone.
FP8_PLAIN = Format("fp8", 8)


def kv_cell_bytes(kv: Format, rank: int, rope: int) -> int:
    """Bytes that the cache holds of one token in one layer: `rank` latents and `rope` values."""
    if kv != FP8_LATENT:
        return (rank + rope) * kv.bits // 8
    return (rank + 3) // 4 * 4 + 4 * ceil(rank / 128) + 2 * rope
