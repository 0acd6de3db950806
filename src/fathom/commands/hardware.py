"""The hardware catalogue as the user has it: fathom's, with the changes of a file of their own."""

from __future__ import annotations

from fathom.commands.files import read_text
from fathom.config import environment_data_dir, environment_hardware_file
from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration, built_in, joined, kept, parse_calibration
from fathom.spec.catalogue import Catalogue, builtin_catalogue, find_cpu, parse_cluster
from fathom.spec.hardware import Cluster, Gpu

CPU = "cpu"
"""What `--gpu` calls the CPUs of this machine."""


def read_catalogue(flag: str | None = None) -> Catalogue:
    """The catalogue with the changes of the file that `--hardware` names, or FATHOM_HARDWARE where
    the flag is not given.

    Raises: ConfigError for a file that cannot be read, and for what is wrong in it.
    """
    path = flag or environment_hardware_file()
    if path is None:
        return builtin_catalogue()
    text = read_text("--hardware" if flag else "FATHOM_HARDWARE", path, "a TOML file")
    return builtin_catalogue().changed(text, path)


def read_machines(
    gpu: str,
    *,
    nodes: int | None = None,
    network: str | None = None,
    calibration: str | None = None,
    catalogue: Catalogue,
) -> tuple[Cluster, Calibration]:
    """The machines that `--gpu` names, and the times of their kernels: those of a file, else the
    newest that `fathom bench calibrate` kept for them, else those that come with fathom.

    Raises: ConfigError for unknown names, and for CPUs that were not measured.
    """
    if gpu.lower() != CPU:
        cluster = parse_cluster(gpu, nodes, network=network, catalogue=catalogue)
        return cluster, read_calibration(calibration, cluster)
    if nodes or network:
        raise ConfigError(
            "--gpu cpu, which is this machine alone",
            found="--nodes" if nodes else "--network",
            fix=f"leave --{'nodes' if nodes else 'network'} out",
        )
    if calibration is None:
        every = [one for one in kept(environment_data_dir()) if one.threads]
    else:
        every = [parse_calibration(read_text("--calibration", calibration), calibration)]
    newest = max(every, key=lambda one: one.date, default=None)
    if newest is None or not newest.threads:
        raise ConfigError(
            "--gpu cpu",
            found="CPUs that were not measured",
            wanted="what fathom bench calibrate keeps",
            fix="fathom bench calibrate MODEL, once for each --quantization to plan for",
        )
    measured = joined([one for one in every if one.machine == newest.machine])
    return _host(measured, catalogue), measured


def _host(measured: Calibration, catalogue: Catalogue) -> Cluster:
    """The CPUs that were measured, as one device."""
    known, bytes_s = find_cpu(measured.machine, catalogue), measured.bytes_s
    peak = measured.peaks["bfloat16"]
    cpus = Gpu(
        id=measured.machine,
        name=measured.machine,
        names=(),
        vendor=known.vendor if known else "",
        arch=known.arch if known else "",
        market="global",
        sm=0,
        memory_bytes=measured.memory_bytes,
        bandwidth_bytes_s=bytes_s,
        bf16_flops=peak,
        fp8_flops=peak,
        int8_ops=peak,
        fp32_flops=measured.peaks["vector"],
        sm_count=None,
        nvlink_bytes_s=0.0,
        nvlink_gpus=1,
        pcie_bytes_s=bytes_s,
        network="",
        tdp_w=known.tdp_w if known else 0.0,
        has_fp8=True,
        is_verified=True,
        source=measured.source,
        date=measured.date,
        note="",
    )
    return Cluster(
        gpu=cpus, gpus_per_node=1, nodes=1, network_bytes_s=bytes_s, host_threads=measured.threads
    )


def read_calibration(path: str | None, cluster: Cluster) -> Calibration:
    """The times of the kernels of GPUs, as `read_machines` has them."""
    if path is None:
        here = [one for one in kept(environment_data_dir()) if one.machine == cluster.gpu.id]
        return max(here, key=lambda one: one.date, default=built_in())
    return parse_calibration(read_text("--calibration", path), path)
