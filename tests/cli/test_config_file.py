"""A settings file against the flags that say the same, and against what it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.commands import serve
from fathom.commands.config_file import write_toml
from fathom.errors import ConfigError


def parsed(tmp_path: Path, text: str, *flags: str) -> tuple[object, object]:
    path = tmp_path / "fathom.toml"
    path.write_text(text, encoding="utf-8")
    return serve.parse([*flags, "--config", str(path)])[:2]


def test_the_file_says_what_the_flags_say_and_flags_win(tmp_path: Path) -> None:
    text = """
    [engine]
    model = "/models/x"
    tensor_parallel_size = 2
    max_model_len = "32k"
    kv_cache_memory_bytes = "1GiB"
    served_model_name = ["a", "b"]
    enable_prefix_caching = false
    [server]
    port = 9000
    """
    flags = ["/models/x", "--tp", "2", "--max-model-len", "32k", "--kv-cache-memory-bytes", "1GiB"]
    flags += ["--served-model-name", "a", "b", "--no-enable-prefix-caching", "--port", "9000"]
    assert parsed(tmp_path, text) == serve.parse(flags)[:2]
    changed = parsed(tmp_path, text, "--port", "1", "--tp", "4")
    assert changed == serve.parse([*flags, "--port", "1", "--tp", "4"])[:2]
    other = parsed(tmp_path, text, "/models/y")
    assert other == serve.parse(["/models/y", *flags[1:]])[:2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engine]\ntensor_paralel_size = 2", "tensor_parallel_size"),
        ("[engine]\ntensor_parallel_size = 'two'", "--tensor-parallel-size"),
        ("[engine]\ntensor_parallel_size = 0", "1 or more"),
        ("[engine]\nseed = 1.5", "--seed"),
        ("[server]\napi_key = ['secret-one']", "FATHOM_API_KEY"),
        ("[motor]\nx = 1", "[engine] and [server]"),
        ("port = 1", "[engine] and [server]"),
        ("[engine", "--config"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(tmp_path, text)
    told = " ".join([caught.value.what, caught.value.found, caught.value.wanted, caught.value.fix])
    assert words in told
    assert "secret-one" not in told


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        serve.parse(["--config", str(tmp_path / "none.toml")])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = {"model": 'a "b" \\ c\n', "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5}
    text = write_toml({"engine": {**table, "enable_prefix_caching": False}}, ["one\ntwo"])
    config = serve.parse(["--config", str(_write(tmp_path, text))])[0]
    assert {name: getattr(config, name) for name in table} == table
    assert not config.enable_prefix_caching


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "written.toml"
    path.write_text(text, encoding="utf-8")
    return path
