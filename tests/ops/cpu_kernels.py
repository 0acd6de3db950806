"""Calls the CPU kernels by their C interface, on numpy arrays; weights with their exact values."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fathom.ops.backends.cpu import library

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bits = NDArray[np.uint16]

ISAS = ("amx", "avx512", "avx2", "amx_emulated")
_KINDS = {"bf16": 0, "fp8": 3, "int8": 4, "int4": 5}
_FORMATS = {"bf16": 0, "fp8": 1, "int8": 2, "int4": 3}


def available() -> list[str]:
    """The instruction sets that this processor runs, the best first."""
    lib = library.load()
    best = library.isa().encode()
    found = [name for name in ISAS if lib.fathom_choose_isa(name.encode())]
    lib.fathom_choose_isa(best)
    return found


def processor_flags() -> set[str]:
    """What the system says that the processor has."""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


@contextmanager
def using(isa: str, threads: int = 1) -> Iterator[None]:
    """Kernels of one instruction set, on unpinned threads; as before afterwards."""
    lib = library.load()
    best, count = library.isa().encode(), lib.fathom_num_threads()
    assert lib.fathom_choose_isa(isa.encode()), f"no kernels for {isa}"
    _start(threads)
    try:
        yield
    finally:
        lib.fathom_choose_isa(best)
        _start(count)


def _start(threads: int) -> None:
    lib = library.load()
    if lib.fathom_num_threads() != threads:
        assert lib.fathom_start_threads(threads, (ctypes.c_int * threads)(*[-1] * threads))


def to_bf16(values: Array) -> Bits:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bf16(bits: Bits) -> Floats:
    """Exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3_values() -> Floats:
    """All 256 values of float8 e4m3 by their definition: 4 bits of exponent, no infinity."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[codes & 127 == 127] = np.nan
    return (np.where(codes & 128, -1, 1) * values).astype(np.float32)


@dataclass(frozen=True)
class Weight:
    """A matrix [N, K] as a checkpoint stores it, and its exact values where they are finite."""

    format: str
    data: Array
    scale: Array | None = None
    zero: Array | None = None
    group: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        columns = self.data.shape[1] * (2 if self.format == "int4" else 1)
        return self.data.shape[0], columns

    def nibbles(self) -> Array:
        """[N, K] of int4, 0 .. 15."""
        assert self.format == "int4"
        pairs = np.stack([self.data & 15, self.data >> 4], axis=-1)
        return pairs.reshape(self.data.shape[0], -1)

    def values(self) -> Doubles:
        """[N, K], exact."""
        n, k = self.shape
        if self.format == "bf16":
            return from_bf16(self.data).astype(np.float64)
        assert self.scale is not None
        scale = self.scale.astype(np.float64)
        if self.format == "fp8":
            blocks = scale.repeat(128, 0)[:n].repeat(128, 1)[:, :k]
            return e4m3_values()[self.data].astype(np.float64) * blocks
        if self.format == "int8":
            return self.data.astype(np.float64) * scale[:, None]
        assert self.zero is not None
        zero = self.zero.repeat(self.group, 1)[:, :k].astype(np.float64)
        return (self.nibbles() - zero) * scale.repeat(self.group, 1)[:, :k]


def random_weight(rng: np.random.Generator, form: str, n: int, k: int, group: int = 0) -> Weight:
    """Every code of the format may occur, but for NaN."""
    if form == "bf16":
        return Weight(form, to_bf16(rng.standard_normal((n, k))))
    if form == "fp8":
        codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
        codes[codes & 127 == 127] = 0x80
        scale = rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))).astype(np.float32)
        return Weight(form, codes, scale)
    if form == "int8":
        codes = rng.integers(-128, 128, (n, k), dtype=np.int8)
        return Weight(form, codes, rng.uniform(0.5, 2, n).astype(np.float32))
    groups = k // group
    return Weight(
        form,
        rng.integers(0, 256, (n, k // 2), dtype=np.uint8),
        rng.uniform(0.5, 2, (n, groups)).astype(np.float16),
        rng.integers(0, 16, (n, groups), dtype=np.uint8),
        group,
    )


@dataclass(frozen=True)
class Packed:
    """A matrix for the kernels. `memory` keeps its bytes alive."""

    matrix: library.Matrix
    memory: NDArray[np.uint8]

    def payload(self) -> bytes:
        """The packed bytes."""
        return self.memory.tobytes()


def pack(
    weights: list[Weight], *, into: str = "", group: int = 0, is_gated: bool = False
) -> Packed:
    """One expert whose rows are those of `weights`, one under the other, in the format `into`."""
    lib = library.load()
    first = weights[0]
    rows = sum(weight.shape[0] for weight in weights)
    kind = _FORMATS[into or first.format]
    matrix = library.Matrix(
        kind, group or first.group, int(is_gated), 1, rows, first.shape[1], None, 0
    )
    num_bytes = int(lib.fathom_matrix_bytes(matrix))
    raw = np.zeros(num_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    memory = raw[start : start + num_bytes]
    matrix.data, matrix.num_bytes = memory.ctypes.data, num_bytes
    sources = (library.Source * len(weights))(*[_source(weight) for weight in weights])
    library.check(lib.fathom_pack(matrix, 0, sources, len(weights)))
    return Packed(matrix, memory)


def _source(weight: Weight) -> library.Source:
    scale, zero = weight.scale, weight.zero
    kind = 1 if weight.data.dtype == np.float32 else _KINDS[weight.format]
    return library.Source(
        weight.data.ctypes.data,
        None if scale is None else scale.ctypes.data,
        None if zero is None else zero.ctypes.data,
        *weight.shape,
        weight.data.shape[1],
        0 if scale is None else (scale.shape[1] if scale.ndim > 1 else 1),
        0 if zero is None else zero.shape[1],
        kind,
        weight.group,
    )


def linear(packed: Packed, x: Bits) -> Floats:
    """x [T, K] times the matrix, [T, N] in float32."""
    x = np.ascontiguousarray(x)
    out = np.full((x.shape[0], packed.matrix.n), np.nan, np.float32)
    library.check(
        library.load().fathom_linear(
            *(ctypes.addressof(packed.matrix), 0, x.ctypes.data, x.shape[1], *x.shape),
            *(None, 0.0, None, 0, out.ctypes.data, out.shape[1], 1),
        )
    )
    return out


def experts(gate_up: Packed, down: Packed, ids: Array, weights: Floats, x: Bits) -> Bits:
    """Routed experts without a shared one: x [T, width] to [T, width] bfloat16."""
    out = np.empty_like(x)
    pointers = (gate_up.matrix, down.matrix)
    library.check(
        library.load().fathom_experts(
            *(ctypes.addressof(matrix) for matrix in pointers),
            *(ids.ctypes.data, weights.ctypes.data, ids.shape[1], None, None),
            *(x.ctypes.data, x.shape[1], *x.shape, out.ctypes.data, out.shape[1]),
        )
    )
    return out
