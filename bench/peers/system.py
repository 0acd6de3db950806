"""What the machine is and does meanwhile: its name, stolen time, load, memory of processes."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.peers.protocol import ROOT


def machine() -> dict[str, Any]:
    """Processor, cores, memory, the features that kernels choose by."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    rows = [line.partition(":")[::2] for line in cpu]
    names = [value.strip() for name, value in rows if name.strip() == "model name"]
    flags = next((value.split() for name, value in rows if name.strip() == "flags"), [])
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in known if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The last commit that changed what is measured, with a mark where files differ from it."""

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", *words, "--", "src", "csrc"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return answer.stdout.strip()

    try:
        mark = "-dirty" if git("status", "--porcelain") else ""
        return (git("log", "-1", "--format=%H") or "unknown") + mark
    except OSError:
        return "unknown"


def available_bytes() -> int:
    """Memory that processes can have without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Fills in, at its end, how the machine was: shares of all CPU time that the hypervisor stole
    (`steal`) and that was spent at all (`busy`), the load average, the seconds, and the pages that
    had to be read again from disk (`disk_pages`): many tell of too little memory."""
    seen: dict[str, float] = {}
    before, begun, faults = _cpu_times(), time.monotonic(), _major_faults()
    yield seen
    spent = [late - early for late, early in zip(_cpu_times(), before, strict=True)]
    total = max(1, sum(spent))
    seen["steal"] = round(spent[7] / total, 4)
    seen["busy"] = round(1 - (spent[3] + spent[4]) / total, 4)
    seen["load"] = round(os.getloadavg()[0], 2)
    seen["seconds"] = round(time.monotonic() - begun, 2)
    seen["disk_pages"] = _major_faults() - faults


def _major_faults() -> int:
    """Pages that any process had to read from disk, since the start: /proc/vmstat."""
    for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines():
        if line.startswith("pgmajfault "):
            return int(line.split()[1])
    return 0


def _cpu_times() -> list[int]:
    """user nice system idle iowait irq softirq steal, in ticks since the start: proc(5)."""
    first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    return [int(word) for word in first.split()[1:9]]


def peak_memory_bytes(leader: int) -> int:
    """Sum of the peak resident sizes of a process and those below it."""
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "status").read_text(encoding="utf-8")
        except OSError:
            continue  # it ended meanwhile
        fields = dict(line.partition(":")[::2] for line in text.splitlines())
        parents[int(entry.name)] = int(fields["PPid"])
        peaks[int(entry.name)] = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    return sum(peak for pid, peak in peaks.items() if _is_below(pid, leader, parents))


def _is_below(pid: int, leader: int, parents: dict[int, int]) -> bool:
    while pid not in (leader, 0):
        pid = parents.get(pid, 0)
    return pid == leader
