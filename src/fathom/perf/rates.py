"""What a deployment's devices and links do at best: the denominators of every roofline."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.perf.calibration import Calibration
from fathom.spec.formats import Format
from fathom.spec.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of one device: `bytes_s` of its memory; operations per second by the format of weights, the
    same as `bfloat16` where it has no units for them or multiplies them out on the way; `vector`:
    of float32 outside of matrix units, which scales, sums and exponentiates beside them; `node`:
    devices that share a host. `links` of groups of ranks as (largest group, bytes per second and
    direction, seconds that they add to a collective beside what was measured), the smallest first.
    """

    machine: str
    bytes_s: float
    bfloat16: float
    fp8_block: float
    int8: float
    int4: float
    vector: float
    node: int = 2**20
    links: tuple[tuple[int, float, float], ...] = ()

    def operations_s(self, form: Format) -> float:
        """Of products whose weights have a format."""
        by_name = {"fp8_block": self.fp8_block, "int8": self.int8, "int4": self.int4}
        return by_name.get(form.name, self.bfloat16)

    @property
    def peaks(self) -> dict[str, float]:
        """Operations per second by name, as a calibration keeps them."""
        names = ("bfloat16", "fp8_block", "int8", "int4", "vector")
        return {name: getattr(self, name) for name in names}

    def link(self, ranks: int) -> tuple[float, float]:
        """Bytes per second and direction within a group of `ranks` neighbours, and seconds more
        that a collective takes than over the links that were measured."""
        for largest, bytes_s, more_s in self.links:
            if ranks <= largest:
                return bytes_s, more_s
        return self.links[-1][1:]


# Of GPUs whose float32 rate is not stated: as the H100's is to its bfloat16 rate.
_VECTOR_SHARE = 0.07
# A collective over PCIe takes some 27 us, over NVLink some 5; one that leaves the node 20 to 30
# more. Source: measured all-reduces of bench/data, and what users of both report.
_PCIE_MORE_S, _NETWORK_MORE_S = 20e-6, 25e-6
# Processes of a host that wait for each other; not measured.
_HOST_MORE_S = 5e-5


def cluster_rates(cluster: Cluster) -> Rates:
    """Of a cluster of GPUs."""
    gpu, node = cluster.gpu, cluster.gpus_per_node
    sizes = ((min(node, gpu.nvlink_gpus), 0.0), (node, _PCIE_MORE_S))
    links = [(size, cluster.group_bytes_s(size), more_s) for size, more_s in sizes if size > 1]
    if cluster.nodes > 1:
        links.append((cluster.num_gpus, cluster.network_bytes_s, _NETWORK_MORE_S))
    return Rates(
        machine=gpu.id,
        bytes_s=gpu.bandwidth_bytes_s,
        bfloat16=gpu.bf16_flops,
        fp8_block=gpu.fp8_flops if gpu.has_fp8 and gpu.fp8_flops else gpu.bf16_flops,
        int8=gpu.int8_ops or gpu.bf16_flops,
        int4=gpu.bf16_flops,
        vector=gpu.fp32_flops or gpu.bf16_flops * _VECTOR_SHARE,
        node=node,
        links=tuple(links),
    )


def measured_rates(calibration: Calibration) -> Rates:
    """Of the machine at hand, as `fathom bench calibrate` found it. Ranks of one host exchange
    through its memory."""
    bytes_s, peaks = calibration.bytes_s, calibration.peaks
    return Rates(
        machine=calibration.machine,
        bytes_s=bytes_s,
        bfloat16=peaks["bfloat16"],
        fp8_block=peaks["fp8_block"],
        int8=peaks["int8"],
        int4=peaks["int4"],
        vector=peaks["vector"],
        links=((2**20, bytes_s, _HOST_MORE_S),),
    )
