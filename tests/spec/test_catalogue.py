"""The hardware catalogue against datasheets, driver names as nvidia-smi prints them, and what must
hold of any machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.spec.catalogue import (
    builtin_catalogue,
    find_cpu,
    find_gpu,
    find_link,
    parse_cluster,
)
from fathom.spec.hardware import Gpu


@pytest.mark.parametrize(
    ("gpu", "gigabytes", "terabytes_s", "bf16", "fp8", "nvlink"),
    [  # NVIDIA's datasheets: memory, bandwidth, dense teraflops, NVLink in both directions
        ("h100-sxm-80", 80, 3.35, 989.4, 1978.9, 900),
        ("h200-sxm-141", 141, 4.8, 989, 1979, 900),
        ("h800-sxm-80", 80, 3.35, 989.4, 1978.9, 400),
        ("h20-sxm-96", 96, 4.0, 148, 296, 900),
        ("h20-3e-141", 141, 4.8, 148, 296, 900),
        ("a100-sxm-80", 80, 2.039, 312, None, 600),
        ("a800-sxm-80", 80, 2.039, 312, None, 400),
        ("l20-48", 48, 0.864, 119.5, 239, 0),
        ("rtx6000-ada-48", 48, 0.96, 364.2, 728.5, 0),
        ("rtx4090d-24", 24, 1.008, 147.1, 294.2, 0),
    ],
)
def test_figures_are_those_of_the_datasheets(
    gpu: str, gigabytes: int, terabytes_s: float, bf16: float, fp8: float | None, nvlink: float
) -> None:
    found = find_gpu(gpu)
    assert found.memory_bytes == pytest.approx(gigabytes * 2**30, rel=0.07)
    assert found.bandwidth_bytes_s == pytest.approx(terabytes_s * 1e12)
    assert found.bf16_flops == pytest.approx(bf16 * 1e12)
    assert found.fp8_flops == (None if fp8 is None else pytest.approx(fp8 * 1e12))
    assert found.has_fp8 == (fp8 is not None)
    assert found.nvlink_bytes_s == pytest.approx(nvlink / 2 * 1e9)


def test_every_row_is_a_machine_that_can_be() -> None:
    catalogue = builtin_catalogue()
    rows = [*catalogue.gpus, *catalogue.cpus, *catalogue.links]
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.date and row.source for row in rows)
    for gpu in catalogue.gpus:
        size = int(gpu.id.removesuffix("-mod").rpartition("-")[2])
        assert 0.88 < gpu.memory_bytes / (size * 2**30) <= 1.021, gpu.id
        assert 30 < gpu.bf16_flops / gpu.bandwidth_bytes_s < 700, gpu.id
        assert gpu.fp8_flops is None or gpu.fp8_flops == pytest.approx(2 * gpu.bf16_flops, rel=0.02)
        assert (gpu.nvlink_gpus > 1) == (gpu.nvlink_bytes_s > 0)
        assert gpu.vendor != "NVIDIA" or gpu.has_fp8 == (gpu.sm >= 89)
        assert find_link(gpu.network, catalogue).kind == "network"


@pytest.mark.parametrize("gpu", builtin_catalogue().gpus, ids=lambda gpu: gpu.id)
def test_ids_and_names_find_themselves(gpu: Gpu) -> None:
    assert find_gpu(gpu.id) is gpu
    assert find_gpu(gpu.name) is gpu
    by_memory = find_gpu(gpu.names[0], memory_bytes=gpu.memory_bytes)
    assert by_memory is gpu


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("H20-96", "h20-sxm-96"),
        ("h20 141GB", "h20-3e-141"),
        ("H20-3e", "h20-3e-141"),
        ("H100", "h100-sxm-80"),
        ("H100-80", "h100-sxm-80"),
        ("H100 PCIe", "h100-pcie-80"),
        ("A800-80", "a800-sxm-80"),
        ("4090", "rtx4090-24"),
        ("RTX 4090D", "rtx4090d-24"),
        ("4090-48", "rtx4090-48-mod"),
        ("RTX 6000 Ada", "rtx6000-ada-48"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80"),
        ("NVIDIA H100 NVL", "h100-nvl-94"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("NVIDIA GeForce RTX 4090 D", "rtx4090d-24"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada-48"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000-96"),
        ("NVIDIA GH200 144G HBM3e", "gh200-144"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm-288"),
    ],
)
def test_names_as_people_and_drivers_write_them(name: str, wanted: str) -> None:
    assert find_gpu(name).id == wanted


def test_a_name_of_several_sizes_says_them() -> None:
    with pytest.raises(ConfigError, match=r"h20-sxm-96 .* or h20-3e-141"):
        find_gpu("H20")
    with pytest.raises(ConfigError, match=r"a100-sxm-80 .* or a100-sxm-40"):
        find_gpu("A100")
    assert find_gpu("NVIDIA H20", memory_bytes=97871 << 20).id == "h20-sxm-96"
    assert find_gpu("NVIDIA H20", memory_bytes=143771 << 20).id == "h20-3e-141"


@pytest.mark.parametrize("name", ["H20O", "V100", "", "h100-96", "x" * 500])
def test_an_unknown_gpu_gets_names_that_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="--gpu") as caught:
        find_gpu(name)
    assert any(gpu.id in caught.value.wanted for gpu in builtin_catalogue().gpus)
    assert len(caught.value.found) < 150


def test_clusters() -> None:
    two = parse_cluster("8xH20-96", 2)
    assert (two.gpus_per_node, two.nodes, two.num_gpus) == (8, 2, 16)
    sixteen = parse_cluster("16 x H100-80")
    assert (sixteen.gpus_per_node, sixteen.nodes) == (8, 2)
    assert sixteen.network_bytes_s == 50e9
    assert sixteen.group_bytes_s(8) == 450e9
    assert sixteen.group_bytes_s(16) == 50e9
    pcie = parse_cluster("4xL40S", network="roce-100")
    assert (pcie.group_bytes_s(4), pcie.network_bytes_s) == (32e9, 12.5e9)
    bridged = parse_cluster("8xA100-PCIe-80")
    assert (bridged.group_bytes_s(2), bridged.group_bytes_s(4)) == (300e9, 32e9)
    assert parse_cluster("72xGB200").nodes == 1
    assert parse_cluster("4090").num_gpus == 1


@given(st.integers(1, 600))
def test_dividing_over_nodes_keeps_every_gpu(count: int) -> None:
    cluster = parse_cluster(f"{count}xH100")
    assert cluster.num_gpus == count
    assert cluster.gpus_per_node <= 8


@pytest.mark.parametrize(
    ("text", "nodes"), [("0xH100", None), ("-2xH100", None), ("8xH100", 0), ("16xH100", 2)]
)
def test_counts_that_no_server_has(text: str, nodes: int | None) -> None:
    with pytest.raises(ConfigError, match="--gpu"):
        parse_cluster(text, nodes)


def test_cpus_by_the_kernels_model_name() -> None:
    """Peaks against the published ones: 12 channels of DDR5-4800 are 460.8 GB/s, and a 36-core
    Sapphire Rapids at 2 GHz has 73.7 TFLOPS of AMX in bf16."""
    genoa = find_cpu("AMD EPYC 9654 96-Core Processor")
    rapids = find_cpu("Intel(R) Xeon(R) Platinum 8452Y")
    larger = find_cpu("Intel(R) Xeon(R) Platinum 8480+")
    assert genoa is not None
    assert rapids is not None
    assert larger is not None
    assert genoa.bandwidth_bytes_s == pytest.approx(460.8e9)
    assert rapids.flops == pytest.approx(73.7e12, rel=1e-3)
    assert rapids.int8_ops == pytest.approx(147.5e12, rel=1e-3)
    assert larger.id == "xeon-8480"
    assert find_cpu("a calculator") is None
    with pytest.raises(ConfigError, match="a GPU") as caught:
        parse_cluster("2xepyc-9654")
    assert "the CPU EPYC 9654" in caught.value.found


def test_a_users_file_changes_and_adds() -> None:
    changed = builtin_catalogue().changed(
        """
        [[gpu]]
        id = "h20-sxm-96"
        bandwidth_gb_s = 3600
        [[gpu]]
        id = "my-card-32"
        like = "l40s-48"
        memory_mib = 32768
        network = "my-net"
        source = "measured"
        [[link]]
        id = "my-net"
        like = "eth-25"
        gb_s = 2.5
        """,
        "mine.toml",
    )
    h20, mine = find_gpu("H20-96", changed), find_gpu("my-card-32", changed)
    assert (h20.bandwidth_bytes_s, h20.source, h20.is_verified) == (3.6e12, "mine.toml", False)
    assert h20.memory_bytes == find_gpu("H20-96").memory_bytes
    assert (mine.memory_bytes, mine.source) == (32 << 30, "measured")
    assert mine.bf16_flops == find_gpu("L40S").bf16_flops
    assert parse_cluster("2xmy-card-32", catalogue=changed).network_bytes_s == 2.5e9
    assert find_gpu("L40S", changed) == find_gpu("L40S")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[gpu]\n", "not valid TOML"),
        ("[[gpus]]\nid='x'", "f.toml: gpus.*nearest: gpu"),
        ("gpu = 3", "f.toml: gpu"),
        ("[[gpu]]\nname='x'", "gpu 1: id"),
        ("[[gpu]]\nid='x'", "no name.*every column"),
        ("[[gpu]]\nid='x'\nlike='h100-sxm-8'", "like.*h100-sxm-80"),
        ("[[gpu]]\nid='l4-24'\nbandwith_gb_s=1", r"l4-24\): bandwith_gb_s.*bandwidth_gb_s"),
        ("[[gpu]]\nid='l4-24'\nbandwidth_gb_s=-1", r"bandwidth_gb_s; found: -1.*above 0"),
        ("[[gpu]]\nid='l4-24'\nbandwidth_gb_s=nan", "bandwidth_gb_s; found: nan"),
        ("[[gpu]]\nid='l4-24'\nbandwidth_gb_s='fast'", "bandwidth_gb_s; found: 'fast'"),
        ("[[gpu]]\nid='l4-24'\nmemory_mib=1.5", "memory_mib.*whole number"),
        ("[[gpu]]\nid='l4-24'\nhas_fp8=2", "has_fp8.*true or false"),
        ("[[gpu]]\nid='l4-24'\nmarket='mars'", "market.*global, china, aftermarket"),
        ("[[gpu]]\nid='l4-24'\nnames=3", "names.*list of names"),
        ("[[gpu]]\nid='l4-24'\nnetwork='carrier pigeon'", "carrier pigeon"),
        ("[[gpu]]\nid='l4-24'\nsource=2026-01-01", "source.*text"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        builtin_catalogue().changed(text, "f.toml")
