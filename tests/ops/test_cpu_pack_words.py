"""Int4 in the words of AWQ and GPTQ: packed from where they lie, and packed from QTensor's layout
after torch unpacked them, they must be the same bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch

from fathom.errors import EngineError
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.matrices import PackedMatrix, pack
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import int4_group
from fathom.spec.stored import Packing

PACKINGS: tuple[Packing, ...] = get_args(Packing)


def random_words(
    rows: int, columns: int, group: int, packing: Packing, seed: int = 0
) -> PackedInt4:
    """Every level and every zero point may occur."""
    rng = np.random.default_rng([seed, rows, columns, group])

    def words(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-(2**31), 2**31, shape, dtype=np.int32))

    values = words(columns, rows // 8) if packing == "awq" else words(columns // 8, rows)
    scale = rng.uniform(-2, 2, (columns // group, rows)).astype(np.float16)
    zero = words(columns // group, rows // 8)
    return PackedInt4(values, torch.from_numpy(scale), zero, packing, int4_group(group))


def payload(matrix: PackedMatrix) -> bytes:
    return ctypes.string_at(matrix.matrix.data, matrix.matrix.num_bytes)


def assert_same(stack: Sequence[Sequence[PackedInt4]], *, is_gated: bool = False) -> None:
    found = pack(stack, len(stack), is_gated=is_gated)
    unpacked = [[part.unpacked() for part in parts] for parts in stack]
    assert payload(found) == payload(pack(unpacked, len(stack), is_gated=is_gated))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_words_give_the_bytes_of_what_torch_unpacks(packing: Packing, group: int) -> None:
    rng = np.random.default_rng(group)
    for seed in range(12):
        rows, groups = 8 * int(rng.integers(1, 40)), int(rng.integers(1, 8))
        assert_same([[random_words(rows, groups * group, group, packing, seed)]])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("rows", "is_gated"), [((72, 72), True), ((72, 200, 8), False)])
def test_stacks_of_joined_parts(packing: Packing, rows: tuple[int, ...], is_gated: bool) -> None:
    """Strips hold outputs of two parts, and end inside a part."""
    stack = [[random_words(n, 192, 64, packing, seed) for n in rows] for seed in range(3)]
    assert_same(stack, is_gated=is_gated)


@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_of_a_file_are_packed_where_they_lie(packing: Packing) -> None:
    """A rank's rows and columns of a larger matrix, also in smaller groups than are stored."""
    whole = random_words(256, 512, 128, packing)
    for rows, columns, group in [
        (slice(64, 200), slice(128, 512), 128),
        (slice(0, 256), slice(160, 320), 32),
    ]:
        part = whole.part(rows, columns, int4_group(group))
        assert isinstance(part, PackedInt4)
        assert part.values.untyped_storage().data_ptr() == whole.values.untyped_storage().data_ptr()
        assert_same([[part]])
        expected = whole.dequantize(torch.float32)[rows, columns]
        assert torch.equal(part.dequantize(torch.float32), expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_words_that_a_cut_divides_are_unpacked(packing: Packing) -> None:
    whole = random_words(64, 128, 64, packing)
    part = whole.part(slice(4, 28), slice(0, 128), int4_group(64))
    assert isinstance(part, QTensor)
    assert torch.equal(part.dequantize(torch.float32), whole.dequantize(torch.float32)[4:28])
    assert_same([[random_words(24, 128, 64, packing)]], is_gated=True)


def test_parts_of_several_kinds_are_packed_too() -> None:
    words, other = (random_words(64, 128, 64, "awq", seed) for seed in range(2))
    expected = payload(pack([[words.unpacked(), other.unpacked()]], 1))
    assert payload(pack([[words, other.unpacked()]], 1)) == expected
    plain = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = payload(pack([[words.dequantize(torch.bfloat16), plain]], 1))
    assert payload(pack([[words, plain]], 1)) == expected


GOOD: dict[str, Any] = {"rows": 64, "k": 128, "kind": library.SOURCES["awq"], "group": 64}
STRIDES = {"stride": 8, "scale_stride": 64, "zero_stride": 8}


def _pack(matrix: dict[str, Any] | None = None, *, count: int = 1, **changed: Any) -> None:
    """`fathom_pack` of one source [64, 128], or the same one `count` times, in enough memory."""
    memory = np.zeros(2**17 + 64, np.uint8)
    at = memory.ctypes.data + -memory.ctypes.data % 64
    into = library.Matrix(
        **{"format": library.FORMATS["int4"], "group": 64, "experts": 1, "n": 64, "k": 128}
        | {"data": at, "num_bytes": 2**17, "is_gated": 0}
        | (matrix or {})
    )
    given = np.zeros(2**17, np.uint8)
    pointers = dict.fromkeys(("data", "scale", "zero"), given.ctypes.data)
    source = library.Source(**{**pointers, **GOOD, **STRIDES, **changed})
    sources = (library.Source * count)(*[source] * count)
    library.check(library.load().fathom_pack(into, 0, sources, count))


def test_the_good_call_is_taken() -> None:
    _pack()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": None}, "no rows"),
        ({"rows": 0}, "no rows"),
        ({"scale": None}, "no scales"),
        ({"zero": None}, "no zero points"),
        ({"kind": 9}, "kind 9"),
        ({"kind": -1}, "kind -1"),
        ({"stride": 7}, "overlap"),
        ({"kind": library.SOURCES["gptq"], "stride": 63}, "overlap"),
        ({"scale_stride": 63}, "overlap"),
        ({"zero_stride": 7}, "overlap"),
        ({"group": 32}, "another format"),
        ({"k": 64}, "number of columns"),
        ({"rows": 56}, "number of rows"),
        ({"rows": 60, "matrix": {"n": 60}}, "eight outputs"),
        ({"rows": 56, "matrix": {"n": 56, "is_gated": 1}}, "eight outputs"),
        ({"matrix": {"format": library.FORMATS["int8"]}}, "another format"),
        ({"count": 0}, "no sources"),
    ],
)
def test_bad_words_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        _pack(**changed)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("part", "shape"), [("values", (127, 8)), ("scale", (2, 56)), ("zero", (1, 8))]
)
def test_shapes_that_do_not_belong_together(
    packing: Packing, part: str, shape: tuple[int, int]
) -> None:
    good = random_words(64, 128, 64, packing)
    tensors = {name: getattr(good, name) for name in ("values", "scale", "zero")}
    tensors[part] = torch.zeros(shape, dtype=tensors[part].dtype)
    with pytest.raises(ValueError, match=f"of an {packing} matrix"):
        PackedInt4(**tensors, packing=packing, format=int4_group(64))
