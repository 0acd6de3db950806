"""Packs the same values from two kinds of sources: packed bytes, or products, must agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fathom.errors import EngineError
from fathom.ops.quant.int4_group import quantize_int4
from tests.ops.cpu_kernels import (
    Weight,
    available,
    e4m3_values,
    from_bf16,
    linear,
    pack,
    random_weight,
    to_bf16,
    using,
)


def test_int8_is_packed_as_the_floats_that_it_stands_for() -> None:
    """Floats whose rounding is exact: a power of two as the scale, the largest of each row 127."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (150, 200), dtype=np.int8)
    codes[:, 17] = 127
    scale = (2.0 ** rng.integers(-5, 5, 150)).astype(np.float32)
    stored = Weight("int8", codes, scale)
    floats = Weight("bf16", stored.values().astype(np.float32))
    assert pack([stored]).payload() == pack([floats], into="int8").payload()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_packed_as_the_floats_that_it_stands_for(group: int) -> None:
    """Floats whose rounding is exact: every group spans nibbles 0 .. 15, by powers of two."""
    rng = np.random.default_rng(group)
    n, k = 100, 384
    nibbles = rng.integers(0, 16, (n, k // group, group), dtype=np.uint8)
    nibbles[:, :, 3], nibbles[:, :, 20] = 0, 15
    flat = nibbles.reshape(n, k)
    scale = (2.0 ** rng.integers(-5, 5, (n, k // group))).astype(np.float16)
    zero = rng.integers(0, 16, (n, k // group), dtype=np.uint8)
    stored = Weight("int4", flat[:, ::2] | flat[:, 1::2] << 4, scale, zero, group)
    np.testing.assert_array_equal(stored.nibbles(), flat)
    floats = Weight("bf16", stored.values().astype(np.float32))
    assert pack([stored]).payload() == pack([floats], into="int4", group=group).payload()


def test_bf16_is_packed_as_the_floats_that_it_stands_for() -> None:
    weight = random_weight(np.random.default_rng(1), "bf16", 70, 90)
    assert pack([weight]).payload() == pack([Weight("bf16", from_bf16(weight.data))]).payload()


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_every_fp8_code_is_its_bfloat16(isa: str, rows: int) -> None:
    """One block with a scale of one: fp8's product has the bits of bfloat16's, NaN included."""
    rng = np.random.default_rng(2)
    codes = np.stack([np.roll(np.arange(256, dtype=np.uint8), -3 * i)[:128] for i in range(96)])
    codes[::2][codes[::2] & 127 == 127] = 0  # every other row has no NaN
    fp8 = Weight("fp8", codes, np.ones((1, 1), np.float32))
    bf16 = Weight("bf16", to_bf16(e4m3_values()[codes]))
    one_hot = to_bf16(np.eye(128))
    x = to_bf16(rng.standard_normal((rows, 128)))
    with using(isa):
        a, b = pack([fp8]), pack([bf16])
        np.testing.assert_array_equal(linear(a, x), linear(b, x))
        finite = np.isfinite(e4m3_values()[codes]).all(axis=1)
        picked = linear(a, one_hot)
    assert finite.any()
    assert not finite.all()
    np.testing.assert_array_equal(picked[:, finite], e4m3_values()[codes].T[:, finite])
    assert np.isnan(picked[:, ~finite]).all()


@pytest.mark.parametrize(
    ("form", "group"), [("bf16", 0), ("fp8", 0), ("int8", 0), ("int4", 32), ("int4", 128)]
)
def test_sources_under_each_other_are_one_matrix(form: str, group: int) -> None:
    rng = np.random.default_rng(4)
    parts = [random_weight(rng, form, n, 256, group) for n in (128, 256, 70)]
    scales = [part.scale for part in parts if part.scale is not None]
    zeros = [part.zero for part in parts if part.zero is not None]
    whole = Weight(
        form,
        np.concatenate([part.data for part in parts]),
        np.concatenate(scales) if scales else None,
        np.concatenate(zeros) if zeros else None,
        group,
    )
    assert pack(parts).payload() == pack([whole]).payload()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_rounded_as_fathom_quantize_rounds(group: int) -> None:
    """Two implementations: weights of a bfloat16 checkpoint that are packed at load get, bit for
    bit, the levels, scales and zero points that a quantised checkpoint of it would have."""
    generator = torch.Generator().manual_seed(group)
    values = torch.randn(130, 384, generator=generator) * torch.logspace(-9, 3, 130).unsqueeze(1)
    values[3] = 0.0
    values[4, :200] = values[4, :200].abs()
    values[5] = -values[5].abs()
    values[6, ::37] *= 50.0
    values = values.bfloat16().float()
    stored = quantize_int4(values, group)
    assert stored.zero is not None
    weight = Weight("int4", stored.data.numpy(), stored.scale.numpy(), stored.zero.numpy(), group)
    floats = Weight("bf16", values.numpy())
    assert pack([weight]).payload() == pack([floats], into="int4", group=group).payload()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_values_that_int4_cannot_hold_are_refused(bad: float) -> None:
    values = np.ones((70, 128), np.float32)
    values[67, 5] = bad
    with pytest.raises(EngineError, match="not finite, or too large"):
        pack([Weight("bf16", values)], into="int4", group=64)
