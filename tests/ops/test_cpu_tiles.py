"""Compares the CPU's products with float64 ones of the same values, on all instruction sets.

For int8 and int4 the activations are rounded here as the kernels round them, so that only the
last float32 steps may differ. A row must have the bits that it has alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cpu_kernels import (
    Bits,
    Doubles,
    Floats,
    Weight,
    available,
    experts,
    from_bf16,
    linear,
    pack,
    processor_flags,
    random_weight,
    to_bf16,
    using,
)

FORMATS = [("bf16", 0), ("fp8", 0), ("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128)]
EPSILON = 2.0**-24  # of a float32 rounding

every_isa = pytest.mark.parametrize("isa", available())
every_format = pytest.mark.parametrize(("form", "group"), FORMATS)


def rounded_activations(x: Floats, group: int) -> tuple[Doubles, Floats]:
    """int8 values and the scale of each group of inputs, [T, groups, group] and [T, groups]."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % group)))
    grouped = padded.reshape(x.shape[0], -1, group)
    largest = np.abs(grouped).max(axis=2)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    whole = np.rint(grouped * inverse[:, :, None])
    return whole.astype(np.float64), largest / np.float32(127)


def oracle(weight: Weight, x: Floats) -> tuple[Doubles, Doubles]:
    """The product in float64, and how far float32 sums may be from it."""
    values, k = weight.values(), x.shape[1]
    if weight.format in ("int8", "int4"):
        group = weight.group or k
        whole, scales = rounded_activations(x, group)
        x = (whole * scales[:, :, None]).reshape(len(x), -1)[:, :k]
    rough = np.abs(x.astype(np.float64)) @ np.abs(values).T
    if weight.format == "int8":
        wanted = x @ values.T
        return wanted, 4 * EPSILON * np.abs(wanted) + 2.0**-48 * rough
    # int4: sums of a group are exact up to the zero point's term, which may cancel.
    steps = k + 4 if weight.format != "int4" else 16 * (k // weight.group + 4)
    return x.astype(np.float64) @ values.T, steps * EPSILON * rough


def random_rows(rng: np.random.Generator, rows: int, k: int) -> Bits:
    """Rows of very different sizes."""
    sizes = 2.0 ** rng.integers(-10, 10, (rows, 1))
    return to_bf16(rng.standard_normal((rows, k)) * sizes)


def test_every_instruction_set_of_the_processor_has_kernels() -> None:
    """What the system lists must be found: a kernel that is never chosen is never tested."""
    flags, found = processor_flags(), set(available())
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}
    wide |= {"avx512vbmi"}
    assert ({"avx2", "fma", "f16c"} <= flags) == ("avx2" in found)
    assert (wide <= flags) == ("avx512" in found) == ("amx_emulated" in found)
    assert (wide | {"amx_tile", "amx_bf16", "amx_int8"} <= flags) == ("amx" in found)


@every_isa
@every_format
@given(
    rows=st.integers(1, 70),
    n=st.integers(1, 200),
    columns=st.integers(1, 400),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=15, deadline=None)
def test_products_of_odd_shapes(
    isa: str, form: str, group: int, rows: int, n: int, columns: int, threads: int, seed: int
) -> None:
    k = columns if group == 0 else -(-columns // group) * group
    rng = np.random.default_rng(seed)
    weight, x = random_weight(rng, form, n, k, group), random_rows(rng, rows, k)
    with using(isa, threads):
        packed = pack([weight])
        found = linear(packed, x)
        some = sorted({0, rows - 1, *rng.integers(0, rows, 6).tolist()})
        alone = np.concatenate([linear(packed, x[row : row + 1]) for row in some])
    wanted, allowed = oracle(weight, from_bf16(x))
    assert (np.abs(found - wanted) <= allowed).all()
    np.testing.assert_array_equal(found[some], alone)


@every_isa
@every_format
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_many_blocks(isa: str, form: str, group: int, threads: int) -> None:
    """More inputs than any block, more rows than one call takes."""
    rng = np.random.default_rng(7)
    weight, x = random_weight(rng, form, 130, 2560, group), random_rows(rng, 67, 2560)
    with using(isa, threads):
        packed = pack([weight])
        found = linear(packed, x)
        some = np.concatenate([linear(packed, x[a:b]) for a, b in ((0, 1), (1, 18), (18, 67))])
    wanted, allowed = oracle(weight, from_bf16(x))
    assert (np.abs(found - wanted) <= allowed).all()
    np.testing.assert_array_equal(found, some)


@pytest.mark.parametrize(("form", "group"), [f for f in FORMATS if f[0].startswith("int")])
def test_whole_numbers_agree_between_instruction_sets(form: str, group: int) -> None:
    """Sums of int8 and int4 are exact, so that all instruction sets must give the same bits."""
    rng = np.random.default_rng(3)
    weight, x = random_weight(rng, form, 100, 640, group), random_rows(rng, 40, 640)
    found = []
    for isa in available():
        with using(isa):
            found.append(linear(pack([weight]), x))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@every_isa
def test_int8_does_not_saturate(isa: str) -> None:
    """Extremes of both sides in every place: 16-bit sums of products would overflow."""
    codes = np.where(np.arange(256) % 2, 127, -128).astype(np.int8)
    weight = Weight("int8", np.stack([codes, -codes, np.full_like(codes, -128)]), np.ones(3, "f4"))
    x = to_bf16(np.stack([np.where(codes > 0, 127.0, -127.0), np.full(256, -127.0)]))
    with using(isa):
        found = linear(pack([weight]), x)
    np.testing.assert_array_equal(found, from_bf16(x) @ weight.values().T)


@every_isa
@every_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_spoils_itself_alone(isa: str, form: str, group: int, bad: float) -> None:
    rng = np.random.default_rng(5)
    weight, x = random_weight(rng, form, 80, 384, group), random_rows(rng, 37, 384)
    spoiled = x.copy()
    places = [0, 5, 17, 36]
    spoiled[places, 200] = to_bf16(np.array([bad]))
    with using(isa):
        packed = pack([weight])
        clean, found = linear(packed, x), linear(packed, spoiled)
    others = np.setdiff1d(np.arange(37), places)
    np.testing.assert_array_equal(found[others], clean[others])
    touched = weight.values()[:, 200] != 0
    assert not np.isfinite(found[places][:, touched]).any()


@every_isa
@every_format
def test_tiny_rows_vanish(isa: str, form: str, group: int) -> None:
    """Values whose inverse is infinite once became bytes of arbitrary sign; now they are zeros."""
    weight = random_weight(np.random.default_rng(1), form, 64, 256, group)
    x = np.full((2, 256), 1, np.uint16)  # the smallest denormal
    with using(isa):
        found = linear(pack([weight]), x)
    assert (np.abs(found) < 1e-30).all()


@every_isa
@every_format
def test_scattered_rows(isa: str, form: str, group: int) -> None:
    """The experts' rows lie anywhere: each token's output must be that of the token alone."""
    rng = np.random.default_rng(11)
    gate_up = random_weight(rng, form, 256, 256, group)
    down = random_weight(rng, form, 256, 128, group)
    x = to_bf16(rng.standard_normal((60, 256)) / 16)
    x[20] = to_bf16(np.array([np.nan]))
    ids = np.zeros((60, 1), np.int64)
    weights = rng.uniform(0.1, 1, (60, 1)).astype(np.float32)
    order = rng.permutation(60)
    with using(isa, 2):
        packed = pack([gate_up], is_gated=True), pack([down])
        together = experts(*packed, ids, weights, x)
        moved = experts(*packed, ids, weights[order], np.ascontiguousarray(x[order]))
        alone = [experts(*packed, ids[:1], weights[i : i + 1], x[i : i + 1]) for i in range(60)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    np.testing.assert_array_equal(together[order], moved)
    assert np.isnan(from_bf16(together[20])).all()
    assert np.isfinite(from_bf16(np.delete(together, 20, axis=0))).all()
