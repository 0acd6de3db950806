"""What a machine can do at best, measured in the run whose rooflines it draws, and what it is.

Memory: the pool's threads read a buffer of four times the last-level cache, in order. Peaks: a loop
of multiply-adds in registers on every thread, by instruction set: for int8, `vpdpbusd` on AVX-512,
`vpmaddwd` and `vpaddd` on AVX2; for bfloat16, `vdpbf16ps` on AVX-512 and float32 `vfmadd` on AVX2.
AMX has no such loop: the best rate of a product whose weights stay in the cache stands for it.
Every measurement is short and the best of many, so that it fits between other work's turns.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.costs import Cost
from fathom.spec.formats import INT8_CHANNEL

ROOT = Path(__file__).resolve().parents[1]
_DEFAULT_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Rates:
    """`bytes_per_s` of memory, and operations per second by kind of numbers."""

    bytes_per_s: float
    operations_per_s: dict[str, float]

    def roofline_s(self, cost: Cost) -> float:
        """The larger of the times that bytes and operations take at least."""
        computing = cost.operations / self.operations_per_s[cost.operand]
        return max(cost.num_bytes / self.bytes_per_s, computing)


def cache_bytes() -> int:
    """Of the last-level cache; 32 MiB where the system does not say."""
    found = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K"):
            found = max(found, int(text[:-1]) * 1024)
    return found or _DEFAULT_CACHE_BYTES


def measure_rates(isa: str, repeats: int, *, buffer_bytes: int, rounds: int) -> Rates:
    """The best of `repeats`, with the instruction set in use: other work only ever slows it."""
    probe = library.load()
    probe.fathom_probe_read.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    probe.fathom_probe_read.restype = None
    probe.fathom_probe_peak.argtypes = (ctypes.c_int, ctypes.c_int64)
    probe.fathom_probe_peak.restype = ctypes.c_int64
    buffer = np.ones(buffer_bytes, np.uint8)
    reading = best_s(lambda: probe.fathom_probe_read(buffer.ctypes.data, buffer_bytes), repeats)
    peaks: dict[str, float] = {}
    for operand, is_int8 in (("bfloat16", 0), ("int8", 1)):
        operations = probe.fathom_probe_peak(is_int8, 1)
        if operations:
            seconds = best_s(lambda kind=is_int8: probe.fathom_probe_peak(kind, rounds), repeats)
            peaks[operand] = operations * rounds / seconds
        else:
            peaks[operand] = _cached_product_rate(repeats, is_int8=bool(is_int8))
    # Products of float32 run on the same units: half as wide, where bfloat16 has its own.
    peaks["float32"] = peaks["bfloat16"] / (1 if isa == "avx2" else 2)
    return Rates(buffer_bytes / reading, peaks)


def _cached_product_rate(repeats: int, *, is_int8: bool) -> float:
    """Operations per second of 512 rows times 512 outputs of 1,024 inputs, half a MiB to a MiB."""
    backend, rows, width, inputs = CpuBackend(), 512, 512, 1024
    weight = torch.randn(width, inputs, dtype=torch.bfloat16)
    held = backend.hold([weight], dtype=weight.dtype, format=INT8_CHANNEL if is_int8 else None)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    backend.linear(x, held)
    return 2 * rows * width * inputs / best_s(lambda: backend.linear(x, held), repeats)


def best_s(call: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def cpu_ticks() -> tuple[int, int]:
    """Ticks of all processors since the start, and those that the hypervisor gave to others."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0, 0
    ticks = [
        int(value) for value in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ]
    return sum(ticks), ticks[7]


def facts() -> dict[str, object]:
    """Machine, commit, versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": cache_bytes(),
        "best_isa": library.isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.release(),
    }


def commit() -> str:
    """The commit that is measured, "unknown" outside of a repository; "+" where files differ."""

    def git(*command: str) -> str:
        answer = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return answer.stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "csrc")
    return (git("rev-parse", "HEAD") or "unknown") + ("+" if changed else "")
