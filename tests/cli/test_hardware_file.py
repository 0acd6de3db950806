"""A hardware file of the user's own: which one is read, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.commands.hardware import read_catalogue
from fathom.errors import ConfigError
from fathom.spec.catalogue import builtin_catalogue, find_gpu, parse_cluster

_CHANGE = '[[gpu]]\nid = "h20-sxm-96"\nbandwidth_gb_s = {}\n'


def test_the_flag_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FATHOM_HARDWARE", raising=False)
    assert read_catalogue() is builtin_catalogue()
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(_CHANGE.format(1000))
    other.write_text(_CHANGE.format(2000))
    monkeypatch.setenv("FATHOM_HARDWARE", str(one))
    assert find_gpu("H20-96", read_catalogue()).bandwidth_bytes_s == 1e12
    assert find_gpu("H20-96", read_catalogue(str(other))).bandwidth_bytes_s == 2e12


@pytest.mark.parametrize("kind", ["missing", "directory", "not text"])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "mine.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "not text":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--hardware .*mine\.toml"):
        read_catalogue(str(path))
    monkeypatch.setenv("FATHOM_HARDWARE", str(path))
    with pytest.raises(ConfigError, match=r"FATHOM_HARDWARE .*mine\.toml"):
        read_catalogue()


def test_what_is_wrong_in_it_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_CHANGE.format("'fast'"))
    with pytest.raises(ConfigError, match=r"mine\.toml: gpu 1 \(h20-sxm-96\): bandwidth_gb_s"):
        read_catalogue(str(path))


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    cluster = parse_cluster("8xmy-gpu-64", 2, catalogue=read_catalogue(str(path)))
    assert (cluster.gpu.memory_bytes, cluster.network_bytes_s) == (64 << 30, 22.5e9)
