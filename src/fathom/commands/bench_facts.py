"""Where a benchmark ran: the machine, the versions, and the commit where there is a git tree."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fathom import __version__

_TIMEOUT_S = 10.0


def machine_facts() -> dict[str, Any]:
    """Facts of this machine and of this fathom, for a result file."""
    return {
        "fathom": __version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
    }


def commit(directory: Path) -> str | None:
    """The commit of fathom's own git tree, with + behind it where files were changed.

    None for an installed copy, also where that lies within some other project's tree.
    """
    head = _git(directory, "rev-parse", "HEAD")
    if not head or not _git(directory, "ls-files", "--", Path(__file__).name):
        return None
    return head + ("+" if _git(directory, "status", "--porcelain", "-uno") else "")


def _git(directory: Path, *arguments: str) -> str:
    """What git says; nothing where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
