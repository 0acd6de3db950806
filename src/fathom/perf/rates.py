"""What a deployment's devices and links do at best: the denominators of every roofline."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.spec.formats import FP8_BLOCK, INT8_CHANNEL, Format
from fathom.spec.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of one device: `bytes_s` of its memory; operations per second by kind of number, `fp8` and
    `int8` the same as `bf16` where it has no such units. `node`: devices that share a host; `links`
    of groups of ranks as (largest group, bytes per second and direction), the smallest first, and
    seconds that each adds to a collective beside what was measured."""

    machine: str
    bytes_s: float
    bf16: float
    fp8: float
    int8: float
    node: int = 1
    links: tuple[tuple[int, float, float], ...] = ()

    def operations_s(self, form: Format) -> float:
        """Of products whose weights have a format; int4 is multiplied out to bfloat16 on the way.

        Where there are CPU kernels for it, int4 runs at int8's rate: `fp8` is 0 there.
        """
        if form == INT8_CHANNEL:
            return self.int8
        if form == FP8_BLOCK:
            return self.fp8
        return self.bf16

    def link(self, ranks: int) -> tuple[float, float]:
        """Bytes per second and direction within a group of `ranks` neighbours, and seconds more
        that a collective takes than over the links that were measured."""
        for largest, bytes_s, more_s in self.links:
            if ranks <= largest:
                return bytes_s, more_s
        return self.links[-1][1:]


# A collective over PCIe takes some 27 us, over NVLink some 5; one that leaves the node 20 to 30
# more. Source: measured all-reduces of bench/data, and what users of both report.
_PCIE_MORE_S, _NETWORK_MORE_S = 20e-6, 25e-6


def cluster_rates(cluster: Cluster) -> Rates:
    """Of a cluster of GPUs."""
    gpu, node = cluster.gpu, cluster.gpus_per_node
    links = []
    if gpu.nvlink_bytes_s:
        links.append((min(node, gpu.nvlink_gpus), gpu.nvlink_bytes_s, 0.0))
    if not links or links[0][0] < node:
        links.append((node, gpu.pcie_bytes_s, _PCIE_MORE_S))
    if cluster.nodes > 1:
        links.append((cluster.num_gpus, cluster.network_bytes_s, _NETWORK_MORE_S))
    return Rates(
        machine=gpu.id,
        bytes_s=gpu.bandwidth_bytes_s,
        bf16=gpu.bf16_flops,
        fp8=gpu.fp8_flops if gpu.has_fp8 and gpu.fp8_flops else gpu.bf16_flops,
        int8=gpu.int8_ops or gpu.bf16_flops,
        node=node,
        links=tuple(links),
    )
