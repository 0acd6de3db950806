"""Reads what machine this is: cores and memory that this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fathom.errors import ConfigError
from fathom.ops.backends.cpu import library
from fathom.spec.hardware import Device, Machine

_ROOT = Path("/")
_KIB = 1024


def probe(device: str = "auto", *, root: Path = _ROOT) -> Machine:
    """The machine as seen by this process: `device` is auto (cuda where there is one), cpu or cuda.

    Memory and cores are those that the control group grants, where it grants less than the machine
    has. `root` holds /proc and /sys.

    Raises: ConfigError for another device, and for cuda where torch finds none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("--device", found=repr(device), wanted="auto, cpu or cuda")
    has_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda",
            found="no CUDA device that torch can use" + _build_note(),
            fix="check nvidia-smi and the torch build, or use --device cpu",
        )
    devices = _cuda_devices() if has_cuda else (_cpu_device(root),)
    isa, note = _cpu_kernels()
    return Machine(devices, _num_cores(root), isa, note)


def _cpu_kernels() -> tuple[str, str]:
    """The instruction set of the CPU kernels, or why there are none."""
    try:
        isa = library.isa()
    except ConfigError as error:
        return "", f"{error.what}: {error.found}; {error.fix}"
    return isa, "" if isa else "the processor has neither AMX, AVX-512 with BF16 and VNNI, nor AVX2"


def _build_note() -> str:
    return "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"


def _cuda_devices() -> tuple[Device, ...]:
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device("cuda", torch.cuda.get_device_name(index), total, free))
    return tuple(found)


def _cpu_device(root: Path) -> Device:
    memory = _table(root / "proc/meminfo")
    total = _kib(memory.get("MemTotal")) or _physical_bytes()
    free = _kib(memory.get("MemAvailable")) or total
    for group in _control_groups(root):
        limit = _number(group / "memory.max")
        if limit is not None:
            # Pages of files count as used, but make room when asked to.
            stat = _table(group / "memory.stat", separator=" ")
            used = (_number(group / "memory.current") or 0) - int(stat.get("inactive_file", "0"))
            total, free = min(total, limit), min(free, max(limit - used, 0))
    processor = _table(root / "proc/cpuinfo")
    return Device("cpu", processor.get("model name", "CPU"), total, free)


def _num_cores(root: Path) -> int:
    """Cores by affinity, or by the control group's quota where that is less."""
    cores = len(os.sched_getaffinity(0))
    for group in _control_groups(root):
        parts = _text(group / "cpu.max").split()
        if len(parts) == 2 and parts[0] != "max":
            cores = min(cores, max(1, int(parts[0]) // int(parts[1])))
    return cores


def _control_groups(root: Path) -> list[Path]:
    """This process's control group (version 2) and those that it lies in."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            group = mount / line[len("0::/") :]
            return [path for path in (group, *group.parents) if path.is_relative_to(mount)]
    return []


def _table(path: Path, separator: str = ":") -> dict[str, str]:
    """Lines of `key: value`; of equal keys the first."""
    table: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(separator)
        table.setdefault(key.strip(), value.strip())
    return table


def _kib(text: str | None) -> int:
    """Bytes of an entry such as `2048 kB`."""
    return int(text.split()[0]) * _KIB if text else 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
