"""Reads NVIDIA GPUs through the driver's own library, NVML: no torch, and no CUDA context.

The library comes with the driver, so nothing has to be installed. Source of names, types and codes:
NVIDIA's NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fathom.errors import ConfigError, UnavailableError
from fathom.spec.catalogue import Catalogue, builtin_catalogue, find_gpu
from fathom.spec.hardware import Cluster, Gpu

LIBRARY = "libnvidia-ml.so.1"

_NAME_BYTES = 96
_NOT_SUPPORTED = 3
# Codes that have a cure of their own; the library's text says the rest.
_CURES = {
    9: "load the driver: modprobe nvidia, or install it",
    18: "the driver was upgraded while loaded: restart the machine",
}


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


@dataclass(frozen=True, slots=True)
class InstalledGpu:
    """One GPU as the driver reports it. `power_limit_w` is None where the board does not say."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    power_limit_w: float | None


def installed_gpus(library: str = LIBRARY) -> tuple[InstalledGpu, ...]:
    """All NVIDIA GPUs of this machine, in the driver's order, whatever CUDA may be told to see.

    Raises: UnavailableError where there is no driver, or it does not answer; says why.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        raise UnavailableError(
            "NVIDIA GPUs cannot be read",
            found=f"no NVML library ({error})",
            fix="name the machine, as in --gpu 8xH20-96, or install NVIDIA's driver",
        ) from error
    with _session(nvml):
        count = ctypes.c_uint()
        _check(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return tuple(_read(nvml, index) for index in range(count.value))


def installed_cluster(
    catalogue: Catalogue | None = None, *, library: str = LIBRARY
) -> Cluster | None:
    """This machine as one node: its GPUs by the catalogue, with the memory and the power limit that
    the driver reports in place of the catalogue's; None where it has no GPU.

    Raises: UnavailableError without a driver; ConfigError for GPUs that differ, and for one that
    the catalogue does not have.
    """
    found = installed_gpus(library)
    if not found:
        return None
    if len(kinds := {(one.name, one.total_bytes >> 30) for one in found}) > 1:
        raise ConfigError(
            "GPUs of this machine",
            found=" and ".join(f"{name} with {size} GiB" for name, size in sorted(kinds)),
            wanted="equal ones; name those to plan for, as in --gpu 4xL40S",
        )
    known = find_gpu(found[0].name, catalogue, memory_bytes=found[0].total_bytes)
    gpu: Gpu = replace(
        known,
        memory_bytes=min(one.total_bytes for one in found),
        tdp_w=min(one.power_limit_w or known.tdp_w for one in found),
    )
    links = {one.id: one.bytes_s for one in (catalogue or builtin_catalogue()).links}
    network = links[gpu.network]
    return Cluster(gpu=gpu, gpus_per_node=len(found), nodes=1, network_bytes_s=network)


@contextmanager
def _session(nvml: ctypes.CDLL) -> Iterator[None]:
    _check(nvml, "nvmlInit_v2")
    try:
        yield
    finally:
        _check(nvml, "nvmlShutdown")


def _read(nvml: ctypes.CDLL, index: int) -> InstalledGpu:
    device = ctypes.c_void_p()
    _check(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(nvml, "nvmlDeviceGetName", device, name, ctypes.c_uint(_NAME_BYTES))
    memory, limit = _Memory(), ctypes.c_uint()
    _check(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    query = "nvmlDeviceGetPowerManagementLimit"
    has_limit = _check(nvml, query, device, ctypes.byref(limit), may_lack=True)
    return InstalledGpu(
        index,
        name.value.decode(errors="replace"),
        memory.total,
        memory.free,
        limit.value / 1000 if has_limit else None,
    )


def _check(nvml: ctypes.CDLL, function: str, *arguments: object, may_lack: bool = False) -> bool:
    """Calls `function`; False where the board does not support it and `may_lack` allows that.

    Raises: UnavailableError for any other code than success, with the library's text.
    """
    try:
        code = getattr(nvml, function)(*arguments)
    except AttributeError as error:
        raise UnavailableError(f"NVML lacks {function}", fix="a newer NVIDIA driver") from error
    if may_lack and code == _NOT_SUPPORTED:
        return False
    if code != 0:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        text = (nvml.nvmlErrorString(code) or b"").decode(errors="replace")
        raise UnavailableError(
            "NVIDIA GPUs cannot be read",
            found=f"{function}: {text} (code {code})",
            fix=_CURES.get(code, "nvidia-smi shows what is wrong"),
        )
    return True
