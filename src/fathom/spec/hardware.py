"""What a machine is. Reading one is impure and lives in `runtime/device.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or the host's CPUs as one device. Memory in bytes."""

    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices that a deployment may use, and the cores of the host.

    `cpu_isa`: the instruction set that the CPU kernels would use, such as avx512; empty where there
    are none, and `cpu_isa_note` says why.
    """

    devices: tuple[Device, ...]
    num_cores: int
    cpu_isa: str = ""
    cpu_isa_note: str = "not looked for"
