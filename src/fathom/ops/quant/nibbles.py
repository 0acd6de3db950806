"""Two 4-bit values in a byte: the even column in the low four bits, the odd one above."""

from __future__ import annotations

import torch


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """`values` [..., K] uint8, 0 to 15, as [..., K / 2] uint8. K must be even."""
    if values.shape[-1] % 2:
        raise ValueError(f"wanted an even number of columns, found {values.shape[-1]}")
    return values[..., 0::2] | (values[..., 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The values [..., K] uint8 of `packed` [..., K / 2] uint8; a new tensor."""
    values = packed.new_empty(*packed.shape[:-1], 2 * packed.shape[-1])
    torch.bitwise_and(packed, 15, out=values[..., 0::2])
    torch.bitwise_right_shift(packed, 4, out=values[..., 1::2])
    return values
