"""Checks FP8 blocks against a loop over blocks, and the bound that rounding to e4m3 gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.ops.quant.fp8_block import FP8_ROWS, quantize_fp8
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import BFLOAT16, FP8_BLOCK

sizes = st.integers(1, 300)


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 3


def by_blocks(tensor: QTensor) -> torch.Tensor:
    """The values, one element's block after the other."""
    out = tensor.data.float()
    (top, left), (height, width) = tensor.offset, tensor.block
    for i in range(tensor.scale.shape[0]):
        for j in range(tensor.scale.shape[1]):
            rows = slice(max(0, i * height - top), max(0, (i + 1) * height - top))
            columns = slice(max(0, j * width - left), max(0, (j + 1) * width - left))
            out[rows, columns] *= tensor.scale[i, j]
    return out


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, st.integers(0, 99), st.sampled_from([FP8_BLOCK, FP8_ROWS]))
def test_round_trip_stays_within_half_a_step(
    rows: int, columns: int, seed: int, format: object
) -> None:
    matrix = random_matrix(rows, columns, seed)
    quantized = quantize_fp8(matrix, format)
    assert quantized.data.dtype == torch.float8_e4m3fn
    values = quantized.dequantize(torch.float32)
    assert values.equal(by_blocks(quantized))
    # e4m3 has 3 fraction bits: half a step is 1/16 of a value, or of the smallest normal one.
    floor = 2.0**-6 * quantized.scale.max()
    assert ((values - matrix).abs() <= torch.clamp(matrix.abs(), min=floor) / 16 * 1.0001).all()


@settings(max_examples=50, deadline=None)
@given(st.data(), sizes, sizes, st.integers(0, 99))
def test_slices_may_cut_through_blocks(
    data: st.DataObject, rows: int, columns: int, seed: int
) -> None:
    quantized = quantize_fp8(random_matrix(rows, columns, seed))
    whole = quantized.dequantize(torch.float32)
    for _ in range(2):  # a slice of a slice too
        parts = []
        for size in quantized.shape:
            start = data.draw(st.integers(0, size - 1))
            parts.append(slice(start, data.draw(st.integers(start + 1, size))))
        quantized, whole = quantized.slice(*parts), whole[tuple(parts)]
        assert quantized.dequantize(torch.float32).equal(whole)
        assert by_blocks(quantized).equal(whole)


def test_a_stack_is_its_matrices() -> None:
    stack = torch.stack([random_matrix(130, 200, seed) for seed in range(3)])
    quantized = quantize_fp8(stack)
    for index, matrix in enumerate(stack):
        alone = quantize_fp8(matrix)
        assert quantized[index].data.view(torch.uint8).equal(alone.data.view(torch.uint8))
        assert quantized[index].scale.equal(alone.scale)
        part = quantized.slice(slice(100, 130), slice(60, 190))[index]
        assert part.dequantize(torch.float32).equal(
            alone.dequantize(torch.float32)[100:130, 60:190]
        )
    with pytest.raises(IndexError, match="stack"):
        quantized[0][0]


def test_extremes() -> None:
    """Zeros, the largest value of a block, NaN, and values too small for the block's scale."""
    matrix = torch.zeros(256, 128)
    matrix[0, :3] = torch.tensor([1e30, -1e30, 1e10])
    matrix[130, 5] = float("nan")
    quantized = quantize_fp8(matrix)
    values = quantized.dequantize(torch.float32)
    torch.testing.assert_close(values[0, :3], torch.tensor([1e30, -1e30, 0.0]))
    assert values[:128].isfinite().all()
    assert values[130, 5].isnan()
    assert quantize_fp8(torch.zeros(3, 5)).dequantize(torch.float32).equal(torch.zeros(3, 5))


def test_scale_of_another_shape_is_refused() -> None:
    data = torch.zeros(130, 200, dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"\(1, 2\), its data wants \(2, 2\)"):
        QTensor(data, torch.ones(1, 2), FP8_BLOCK)
    with pytest.raises(ValueError, match="bfloat16 has no blocks"):
        QTensor(data, torch.ones(2, 2), BFLOAT16)
    with pytest.raises(ValueError, match="wanted an FP8 format"):
        quantize_fp8(torch.ones(3, 3), BFLOAT16)


def test_empty_and_stepped_slices_are_refused() -> None:
    quantized = quantize_fp8(torch.ones(4, 4))
    for part in (slice(2, 2), slice(0, 4, 2)):
        with pytest.raises(ValueError, match="step 1 with at least one"):
            quantized.slice(part, slice(None))
