"""The C interface of `csrc/`: loading the library, its structures, its errors.

ctypes and plain C: one build serves every Python (decision 5). Functions that run kernels release
the interpreter.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from fathom.errors import ConfigError, EngineError

PATH = Path(__file__).with_name("libfathom.so")

_NUM_BUFFERS = 7  # csrc/ops.h: the arenas, and scratch

FORMATS = {"bfloat16": 0, "fp8_block": 1, "int8": 2, "int4": 3}
SOURCES = {
    "bfloat16": 0,
    "float32": 1,
    "float16": 2,
    "fp8_block": 3,
    "int8": 4,
    "int4": 5,
    "awq": 6,
    "gptq": 7,
    "gptq_v2": 8,
}


class Matrix(ctypes.Structure):
    """`struct Matrix` of csrc/matrix.h."""

    _fields_ = (
        ("format", c_int32),
        ("group", c_int32),
        ("is_gated", c_int32),
        ("experts", c_int32),
        ("n", c_int64),
        ("k", c_int64),
        ("data", c_void_p),
        ("num_bytes", c_int64),
    )


class Cache(ctypes.Structure):
    """`struct Cache` of csrc/attend.h."""

    _fields_ = (
        ("data", c_void_p),
        ("pages", c_int64),
        ("page_size", c_int64),
        ("format", c_int32),
        ("rank", c_int32),
        ("rope", c_int32),
    )


class Batch(ctypes.Structure):
    """`struct Batch` of csrc/attend.h."""

    _fields_ = (
        ("sequences", c_int64),
        ("tokens", c_int64),
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("page_table", c_void_p),
        ("table_width", c_int64),
    )


class Source(ctypes.Structure):
    """`struct Source` of csrc/pack.h."""

    _fields_ = (
        ("data", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("rows", c_int64),
        ("k", c_int64),
        ("stride", c_int64),
        ("scale_stride", c_int64),
        ("zero_stride", c_int64),
        ("kind", c_int32),
        ("group", c_int32),
    )


class Router(ctypes.Structure):
    """`struct Router` of csrc/rows.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("experts", c_int64),
        ("width", c_int64),
        ("is_wide", c_bool),
        ("is_softmax", c_bool),
        ("group_rank", c_int),
        ("groups", c_int64),
        ("groups_per_token", c_int64),
        ("per_token", c_int64),
        ("is_normalized", c_bool),
        ("scale", c_float),
    )


_P, _I, _M = c_void_p, c_int64, POINTER(Matrix)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "fathom_isa": (c_char_p, ()),
    "fathom_choose_isa": (c_int, (c_char_p,)),
    "fathom_start_threads": (c_int, (c_int, POINTER(c_int))),
    "fathom_num_threads": (c_int, ()),
    "fathom_pin_caller": (None, ()),
    "fathom_busy_ns": (_I, ()),
    "fathom_reserve": (c_char_p, (POINTER(c_int64),)),
    "fathom_buffers": (None, (POINTER(c_int64), POINTER(c_int64))),
    "fathom_place_weights": (None, (_P, _I)),
    "fathom_matrix_bytes": (_I, (_M,)),
    "fathom_pack": (c_char_p, (_M, _I, POINTER(Source), c_int)),
    "fathom_linear": (
        c_char_p,
        (_P, _I, _P, _I, _I, _I, _P, c_float, _P, _I, _P, _I, c_int),
    ),
    "fathom_rms_norm": (c_char_p, (_P, _I, _I, _I, _P, c_float, _P, _I, _P, _I)),
    "fathom_experts": (c_char_p, (_P, _P, _P, _P, _I, _P, _P, _P, _I, _I, _I, _P, _I)),
    "fathom_cell_bytes": (_I, (c_int32, c_int32, c_int32)),
    "fathom_mla_write": (
        c_char_p,
        (POINTER(Cache), _P, _I, _P, _P, _I, _P, c_float, _P, _P, c_int),
    ),
    "fathom_mla_attend": (
        c_char_p,
        (_P, _I, _P, _P, POINTER(Cache), POINTER(Batch), _P, _P, c_int, c_float, _P),
    ),
    "fathom_largest": (c_char_p, (_P, _I, _I, _I, _P)),
    "fathom_sample": (c_char_p, (_P, _I, _I, _I, _I, _P, _P, _P, _P, _P, _P, _P)),
    "fathom_token_logprobs": (c_char_p, (_P, _I, _I, _I, _P, _I, _P, _P, _P, _P)),
    "fathom_mask": (c_char_p, (_P, _I, _I, _I, _P, _I)),
    "fathom_add_biases": (c_char_p, (_P, _I, _I, _I, _I, _P, _P, _P)),
    "fathom_penalize": (c_char_p, (_P, _I, _I, _I, _I, _P, _P, _P, _P, _P, _P)),
    "fathom_route": (c_char_p, (_P, _I, _I, POINTER(Router), _P, _P)),
    "fathom_embed": (c_char_p, (_P, _I, _P, _I, _I, _I, _P)),
    "fathom_rope": (c_char_p, (_P, _I, _I, _I, _I, _I, _P, _P, c_int, _P)),
    "fathom_silu_mul": (c_char_p, (_P, _I, _I, _I, _P)),
    "fathom_replay": (c_char_p, (_P, _I)),
}


@cache
def load() -> ctypes.CDLL:
    """The library with its signatures set.

    Raises: ConfigError where it was not built, or cannot be loaded.
    """
    if not PATH.is_file():
        raise ConfigError(
            "the CPU kernels",
            found="not built: there was no C++ compiler when fathom was installed",
            fix="install g++ and run pip install again",
        )
    try:
        library = ctypes.CDLL(str(PATH))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ConfigError(
            "the CPU kernels", found=str(error), fix="run pip install again to rebuild them"
        ) from error
    return library


def cache_of(cache: torch.Tensor, rank: int, rope: int) -> Cache:
    """One layer's cache for the kernels. Raises: EngineError for one that is not `mla_write`'s."""
    is_wide = cache.dtype == torch.bfloat16
    pages, page_size, width = cache.shape
    wanted = rank + rope if is_wide else load().fathom_cell_bytes(1, rank, rope)
    if cache.dtype not in (torch.bfloat16, torch.uint8) or width != wanted:
        raise EngineError(
            "cache", found=f"{cache.dtype} of {width} a token", wanted=f"{wanted} a token"
        )
    if not cache.is_contiguous():
        raise EngineError("cache", found=f"strides {cache.stride()}", wanted="one piece")
    return Cache(cache.data_ptr(), pages, page_size, 0 if is_wide else 1, rank, rope)


def start_threads(threads: int, first_cpu: int = 0) -> None:
    """Start the kernels' threads, each on a core of its own from the `first_cpu`-th of those that
    this process may use; the thread that calls the kernels is one of them.

    Raises: ConfigError where the system does not give them.
    """
    cpus = sorted(os.sched_getaffinity(0))
    chosen = [cpus[(first_cpu + i) % len(cpus)] for i in range(threads)]
    if not load().fathom_start_threads(threads, (c_int * threads)(*chosen)):
        raise ConfigError("--threads", found=f"{threads}, which the system does not give")


def pin_caller() -> None:
    """Put the thread that calls this on the core that `start_threads` left for it."""
    load().fathom_pin_caller()


def reserve(sizes: Sequence[int]) -> None:
    """Make the kernels' buffers, of these sizes in bytes (`DeploymentPlan.kernel_buffers`), anew.

    Raises: EngineError where memory ends.
    """
    check(load().fathom_reserve((c_int64 * _NUM_BUFFERS)(*sizes)))


def buffers() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of each arena and of all threads' scratch: held now, and the most that one was asked
    for since they were made."""
    held, asked = (c_int64 * _NUM_BUFFERS)(), (c_int64 * _NUM_BUFFERS)()
    load().fathom_buffers(held, asked)
    return tuple(held), tuple(asked)


def isa() -> str:
    """The instruction set in use; empty where the processor has none that the kernels need."""
    found: bytes = load().fathom_isa()
    return found.decode()


def check(failed: bytes | None) -> None:
    """Raises: EngineError with the library's message where a call failed."""
    if failed is not None:
        raise EngineError("a CPU kernel", found=failed.decode())
