"""What a machine is: the one at hand, and those that can be bought. Reading the one at hand is
impure and lives in `runtime/device.py` and `runtime/nvml.py`; the figures are in
`spec/catalogue.py`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator as its maker states it: peaks without sparsity, links per direction.

    `names` are what people and drivers call it. `market` is where it is sold; aftermarket for parts
    that their maker does not sell. `sm` is NVIDIA's compute capability times ten, the number of
    AMD's gfx target, 0 for others. `memory_bytes` is what the driver reports. NVLink (or its like)
    joins at most `nvlink_gpus` of them, at `nvlink_bytes_s`; 1 and 0 where there is none. `network`
    is the link that servers of this GPU usually have for each of them. None where the maker gives
    no figure, and for FP8 where the GPU has none. `is_verified`: read at its source on `date`.
    """

    id: str
    name: str
    names: tuple[str, ...]
    vendor: str
    arch: str
    market: Literal["global", "china", "aftermarket"]
    sm: int
    memory_bytes: int
    bandwidth_bytes_s: float
    bf16_flops: float
    fp8_flops: float | None
    int8_ops: float | None
    fp32_flops: float | None
    sm_count: int | None
    nvlink_bytes_s: float
    nvlink_gpus: int
    pcie_bytes_s: float
    network: str
    tdp_w: float
    has_fp8: bool
    is_verified: bool
    source: str
    date: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One socket of a host. `isa` is the best instruction set that the CPU kernels have for it.

    `flops_per_cycle` of a core: bf16 where the instruction set multiplies it, else float32;
    `int8_per_cycle` likewise; `clock_hz` is the base clock, which wide instructions can hold.
    """

    id: str
    name: str
    names: tuple[str, ...]
    vendor: str
    arch: str
    kind: Literal["laptop", "desktop", "server"]
    isa: Literal["avx2", "avx512", "amx"]
    cores: int
    clock_hz: float
    flops_per_cycle: int
    int8_per_cycle: int
    memory_channels: int
    transfers_s: float
    tdp_w: float
    source: str
    date: str
    note: str

    @property
    def bandwidth_bytes_s(self) -> float:
        """Peak of memory: channels of eight bytes."""
        return self.memory_channels * 8 * self.transfers_s

    @property
    def flops(self) -> float:
        """Peak of all cores, in bf16 or else float32."""
        return self.cores * self.clock_hz * self.flops_per_cycle

    @property
    def int8_ops(self) -> float:
        """Peak of all cores in int8."""
        return self.cores * self.clock_hz * self.int8_per_cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of a host or a network, `bytes_s` in each direction."""

    id: str
    name: str
    names: tuple[str, ...]
    kind: Literal["host", "network"]
    bytes_s: float
    source: str
    date: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes of equal GPUs. `network_bytes_s`: between nodes, per GPU and direction.

    `host_threads`: where the one device is the CPUs of a host, the threads of their kernels.
    """

    gpu: Gpu
    gpus_per_node: int
    nodes: int
    network_bytes_s: float
    host_threads: int = 0

    @property
    def is_host(self) -> bool:
        """Whether its device is the CPUs of a host."""
        return self.host_threads > 0

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The kind of its devices."""
        return "cpu" if self.is_host else "cuda"

    @property
    def ops_backend(self) -> str:
        """What the ledger counts a step's memory for: kernels of our own are for CPUs."""
        return "cpu" if self.is_host else "reference"

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return self.gpus_per_node * self.nodes

    def group_bytes_s(self, ranks: int) -> float:
        """What each GPU sends, and receives, within a group of `ranks` neighbours: by NVLink where
        it joins them all, by PCIe within a node, else by the network."""
        if ranks > self.gpus_per_node:
            return self.network_bytes_s
        if ranks <= self.gpu.nvlink_gpus and self.gpu.nvlink_bytes_s:
            return self.gpu.nvlink_bytes_s
        return self.gpu.pcie_bytes_s
