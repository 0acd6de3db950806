"""GPUs read through a library with NVML's C interface, compiled here, against what it was told."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fathom.errors import ConfigError, UnavailableError
from fathom.runtime.nvml import installed_cluster, installed_gpus

_SOURCE = Path(__file__).with_name("fake_nvml.c")
_Build = Callable[..., str]


@pytest.fixture
def build(tmp_path: Path) -> _Build:
    """Compiles the library with macros; gives its path."""

    def compiled(**macros: object) -> str:
        library = tmp_path / "libnvidia-ml.so.1"
        flags = [f"-D{name}={value}" for name, value in macros.items()]
        command = ["cc", "-shared", "-fPIC", "-w", *flags, "-o", str(library), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        return str(library)

    return compiled


def test_what_the_driver_reports(build: _Build) -> None:
    library = build()
    first, second = installed_gpus(library)
    assert (first.index, first.name, first.total_bytes) == (0, "NVIDIA H20", 97871 << 20)
    assert first.free_bytes == first.total_bytes - (1 << 30)
    assert (first.power_limit_w, second.power_limit_w) == (400.0, 350.0)
    assert ctypes.CDLL(library).fake_sessions() == 0


def test_the_machine_as_a_cluster(build: _Build) -> None:
    """The memory tells the two H20 apart; the driver's memory and power limit win."""
    cluster = installed_cluster(library=build())
    assert cluster is not None
    assert (cluster.gpu.id, cluster.num_gpus, cluster.gpu.tdp_w) == ("h20-sxm-96", 2, 350.0)
    assert cluster.gpu.memory_bytes == 97871 << 20
    assert cluster.network_bytes_s == 50e9


def test_the_other_h20(build: _Build) -> None:
    cluster = installed_cluster(library=build(MIB="143771ULL", COUNT=8))
    assert cluster is not None
    assert (cluster.gpu.id, cluster.num_gpus) == ("h20-3e-141", 8)


def test_no_gpu(build: _Build) -> None:
    assert installed_cluster(library=build(COUNT=0)) is None


def test_a_board_without_a_power_limit(build: _Build) -> None:
    library = build(LIMIT_CODE=3, NAME='"NVIDIA L20"', MIB="46068ULL")
    assert {one.power_limit_w for one in installed_gpus(library)} == {None}
    cluster = installed_cluster(library=library)
    assert cluster is not None
    assert (cluster.gpu.id, cluster.gpu.tdp_w) == ("l20-48", 275.0)


def test_gpus_that_differ_or_are_unknown(build: _Build) -> None:
    with pytest.raises(ConfigError, match="NVIDIA H20 with 95 GiB and NVIDIA L20"):
        installed_cluster(library=build(OTHER_NAME='"NVIDIA L20"'))


def test_a_gpu_that_is_not_in_the_catalogue(build: _Build) -> None:
    with pytest.raises(ConfigError, match="Tesla P4"):
        installed_cluster(library=build(NAME='"Tesla P4"', MIB="7680ULL"))


@pytest.mark.parametrize(
    ("macros", "wanted"),
    [
        ({"INIT_CODE": 9}, r"nvmlInit_v2: Driver Not Loaded \(code 9\).*load the driver"),
        ({"INIT_CODE": 18}, "version mismatch.*restart the machine"),
        ({"LIMIT_CODE": 15}, r"nvmlDeviceGetPowerManagementLimit: \? \(code 15\)"),
        ({"OLD_DRIVER": 1}, "NVML lacks nvmlDeviceGetPowerManagementLimit"),
    ],
)
def test_a_driver_that_fails_says_why(
    build: _Build, macros: dict[str, object], wanted: str
) -> None:
    library = build(**macros)
    with pytest.raises(UnavailableError, match=wanted):
        installed_gpus(library)
    assert ctypes.CDLL(library).fake_sessions() == 0


def test_no_driver() -> None:
    with pytest.raises(UnavailableError, match=r"no NVML library.*--gpu 8xH20-96"):
        installed_gpus("libno-such-nvml.so.1")


def test_reading_needs_no_torch() -> None:
    code = "import sys, fathom.runtime.nvml; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
