"""Checks int8 rows and int4 groups against loops in float64 and the bounds that rounding gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.ops.quant.int4_group import quantize_int4
from fathom.ops.quant.int8_channel import quantize_int8
from fathom.ops.quant.nibbles import pack_nibbles, unpack_nibbles
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import INT8_CHANNEL, int4_group

groups = st.sampled_from([32, 64, 128])
seeds = st.integers(0, 99)


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Rows of different sizes and of different means, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    values *= torch.logspace(-3, 2, rows)[torch.randperm(rows, generator=generator), None]
    values += values.abs().mean() * torch.randn(rows, 1, generator=generator)
    values[seed % rows] = 0
    return values


def by_elements(tensor: QTensor) -> torch.Tensor:
    """The values in float64, one element after the other, from the layout as documented."""
    data, scale = tensor.data.numpy(), tensor.scale.numpy().astype(np.float64)
    out = np.empty(tuple(tensor.shape))
    for index in np.ndindex(*out.shape):
        *row, column = index
        if tensor.format.name == "int8":
            out[index] = float(data[index]) * scale[(*row, 0)]
            continue
        assert tensor.zero is not None
        byte = int(data[(*row, column // 2)])
        level = byte >> 4 if column % 2 else byte & 15
        group = (*row, column // tensor.block[1])
        out[index] = (level - int(tensor.zero.numpy()[group])) * scale[group]
    return torch.from_numpy(out)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 300), seeds)
def test_int8_stays_within_half_a_step(rows: int, columns: int, seed: int) -> None:
    matrix = random_matrix(rows, columns, seed)
    quantized = quantize_int8(matrix)
    assert (quantized.data.dtype, quantized.scale.dtype) == (torch.int8, torch.float32)
    assert tuple(quantized.scale.shape) == (rows, 1)
    assert quantized.shape == matrix.shape
    exact = by_elements(quantized)
    torch.testing.assert_close(quantized.dequantize(torch.float32).double(), exact)
    largest = matrix.double().abs().amax(dim=1, keepdim=True)
    assert ((exact - matrix).abs() <= largest / 254 * 1.0001).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), groups, seeds)
def test_int4_stays_within_half_a_step(rows: int, num_groups: int, group: int, seed: int) -> None:
    """Against the range of each group in float64; at its ends half a step more, by the rounding of
    the zero point."""
    matrix = random_matrix(rows, num_groups * group, seed)
    quantized = quantize_int4(matrix, group)
    assert quantized.zero is not None
    assert quantized.data.dtype == quantized.zero.dtype == torch.uint8
    assert quantized.scale.dtype == torch.float16
    assert tuple(quantized.data.shape) == (rows, num_groups * group // 2)
    assert tuple(quantized.scale.shape) == (rows, num_groups)
    assert int(quantized.zero.max()) <= 15
    exact = by_elements(quantized)
    torch.testing.assert_close(quantized.dequantize(torch.float32).double(), exact)
    grouped = matrix.double().unflatten(1, (num_groups, group))
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    error = (exact.unflatten(1, (num_groups, group)) - grouped).abs().amax(-1)
    # The scale of float16 is off by 2^-11 at most, which moves the ends by 15 times that.
    half_step = (high - low) / 15 * (0.5 + 15 * 2.0**-11) + 2.0**-24
    assert (error <= 2 * half_step).all()
    assert exact[seed % rows].eq(0).all()


@given(st.binary(min_size=1, max_size=64))
def test_nibbles(content: bytes) -> None:
    packed = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    values = unpack_nibbles(packed)
    assert values.tolist() == [level for byte in content for level in (byte % 16, byte // 16)]
    assert pack_nibbles(values).equal(packed)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["int8", 32, 64, 128]), seeds)
def test_slices(data: st.DataObject, kind: str | int, seed: int) -> None:
    step = kind if isinstance(kind, int) else 1
    matrix = random_matrix(data.draw(st.integers(1, 9)), step * data.draw(st.integers(1, 6)), seed)
    quantized = quantize_int4(matrix, step) if kind != "int8" else quantize_int8(matrix)
    whole = quantized.dequantize(torch.float32)
    for _ in range(2):  # a slice of a slice too
        parts = []
        for size, unit in zip(quantized.shape, (1, step), strict=True):
            start = data.draw(st.integers(0, size // unit - 1))
            stop = data.draw(st.integers(start + 1, size // unit))
            parts.append(slice(start * unit, stop * unit))
        quantized, whole = quantized.slice(*parts), whole[tuple(parts)]
        assert quantized.shape == whole.shape
        assert quantized.offset == (0, 0)
        assert quantized.dequantize(torch.float32).equal(whole)
        assert quantized.to("cpu").dequantize(torch.float32).equal(whole)


def test_a_stack_is_its_matrices() -> None:
    stack = torch.stack([random_matrix(6, 128, seed) for seed in range(3)])
    for quantize in (quantize_int8, lambda values: quantize_int4(values, 32)):
        quantized = quantize(stack)
        assert quantized.shape == stack.shape
        for index, matrix in enumerate(stack):
            alone = quantize(matrix)
            for one, other in zip(quantized[index].tensors, alone.tensors, strict=True):
                assert one.equal(other)
            part = quantized.slice(slice(2, 5), slice(32, 96))[index]
            assert part.dequantize(torch.float32).equal(alone.dequantize(torch.float32)[2:5, 32:96])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_cannot_be_held_is_refused(bad: float) -> None:
    matrix = torch.zeros(2, 64)
    matrix[1, 3] = bad
    with pytest.raises(ValueError, match="not finite, or too large"):
        quantize_int4(matrix, 32)
    if bad != 3e38:
        with pytest.raises(ValueError, match="cannot be held in int8"):
            quantize_int8(matrix)


def test_tiny_values_do_not_divide_by_zero() -> None:
    matrix = torch.full((2, 32), 1e-44)
    matrix[0] = -1e-9
    for quantized in (quantize_int8(matrix), quantize_int4(matrix, 32)):
        assert (quantized.dequantize(torch.float32) - matrix).abs().max() <= 2.0**-24


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="96 columns are not whole groups of 64"):
        quantize_int4(torch.zeros(2, 96), 64)
    with pytest.raises(ValueError, match="32, 64 or 128 columns, not 48"):
        quantize_int4(torch.zeros(2, 96), 48)
    with pytest.raises(ValueError, match="even number"):
        pack_nibbles(torch.zeros(3, dtype=torch.uint8))
    found = quantize_int4(torch.zeros(2, 128), 64)
    with pytest.raises(ValueError, match="32 to 128 cut through groups of 64"):
        found.slice(slice(None), slice(32, None))
    with pytest.raises(ValueError, match="zero points of shape None do not go with int4"):
        QTensor(found.data, found.scale, found.format)
    with pytest.raises(ValueError, match="do not go with int8"):
        QTensor(
            torch.zeros(2, 4, dtype=torch.int8),
            torch.ones(2, 1),
            INT8_CHANNEL,
            zero=torch.zeros(2, 1, dtype=torch.uint8),
        )
    with pytest.raises(ValueError, match="its data wants"):
        QTensor(found.data, found.scale[:, :1], found.format, zero=found.zero)
    with pytest.raises(ValueError, match="not whole groups"):
        QTensor(found.data[:, :48], found.scale, found.format, zero=found.zero)


def test_bytes_of_formats() -> None:
    """DeepSeek-V3's down projection of an expert: 4.1875 bits a value in groups of 128."""
    shape = (7168, 2048)
    assert int4_group(128).num_bytes(shape) * 8 == 7168 * 2048 * 4 + 7168 * 16 * 24
    assert INT8_CHANNEL.num_bytes(shape) == 7168 * 2048 + 7168 * 4
