"""Damaged checkpoints against a table of the errors that they must give, and random damage against
the rule that nothing but CheckpointError comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import CheckpointError
from fathom.weights.header import StoredTensor, read_header
from fathom.weights.index import INDEX_NAME, read_index
from fathom.weights.synthetic import write_checkpoint
from tests.weights.tiny_checkpoints import FP8, TINY_FP8, TINY_V3, edit_header, edit_json, write_raw

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    write_checkpoint(TINY_FP8, path, max_shard_bytes=400_000)
    return path


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    shutil.copytree(sound, path)
    return path


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _first(path: Path) -> Path:
    return _shards(path)[0]


def _truncate(path: Path) -> None:
    file = _first(path)
    file.write_bytes(file.read_bytes()[:-100])


def _truncate_header(path: Path) -> None:
    _first(path).write_bytes(_first(path).read_bytes()[:50])


def _swap(path: Path) -> None:
    first, second = _shards(path)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _duplicate(path: Path) -> None:
    """The second shard stores everything of the first as well."""
    first, second = _shards(path)[:2]
    second.write_bytes(first.read_bytes())


def _rename_in_index(path: Path) -> None:
    edit_json(
        path / INDEX_NAME,
        lambda index: index["weight_map"].update({"model.layers.9.odd.weight": _first(path).name}),
    )


def _unlist(path: Path) -> None:
    edit_json(path / INDEX_NAME, lambda index: index["weight_map"].pop("lm_head.weight"))


def _config(**fields: Any) -> Damage:
    return lambda path: edit_json(path / "config.json", lambda config: config.update(fields))


def _header(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda path: edit_header(_first(path), edit)


EMBED = "model.embed_tokens.weight"


def _entry(key: str, value: object) -> Damage:
    return _header(lambda header: header[EMBED].update({key: value}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, ("is truncated", "model-00001", "fetch this file again")),
        (_truncate_header, ("is truncated", "of its header")),
        (lambda path: _first(path).unlink(), ("1 of 3 files", "missing", "model-00001")),
        (lambda path: _first(path).write_bytes(b""), ("is empty", "model-00001")),
        (
            lambda path: _first(path).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            ("git-lfs pointer", "git lfs pull"),
        ),
        (
            lambda path: _first(path).write_bytes(b"<!DOCTYPE html><html>sign in</html>"),
            ("web page", "proxy"),
        ),
        (lambda path: _first(path).write_bytes(b"abc"), ("damaged", "3 bytes")),
        (lambda path: _first(path).write_bytes(b"\xff" * 64), ("damaged", "100000000 at most")),
        (lambda path: write_raw(_first(path), b"{broken"), ("damaged", "does not parse")),
        (lambda path: write_raw(_first(path), b"[]"), ("damaged", "type list")),
        (lambda path: write_raw(_first(path), b"\xff\xfe{}"), ("damaged", "does not parse")),
        (
            lambda path: write_raw(_first(path), b"[" * 100_000),
            ("damaged", "does not parse"),
        ),
        (
            lambda path: write_raw(_first(path), b'{"a": 1, "a": 2}'),
            ("damaged", "a appears twice"),
        ),
        (lambda path: write_raw(_first(path), b'{"a": 1}'), ("damaged", "dtype, shape")),
        (_entry("dtype", "F4"), ("damaged", "'F4'", "one of")),
        (_entry("shape", [128, -1]), ("damaged", "[128, -1]")),
        (_entry("shape", [64, 128]), ("damaged", EMBED, "bytes for BF16")),
        (_entry("shape", [True, 128]), ("damaged", "True")),
        (_entry("data_offsets", [0]), ("damaged", "offsets [0]")),
        (_entry("data_offsets", [8, 32776]), ("damaged", "without gap or overlap")),
        (_swap, ("model-00002", "wanted: model-00001", "swapped")),
        (_duplicate, ("is stored twice", "model-00001", "model-00002")),
        (_rename_in_index, ("in no file", "model.layers.9.odd.weight")),
        (_unlist, ("missing from model.safetensors.index.json", "lm_head.weight")),
        (lambda path: (path / INDEX_NAME).unlink(), ("shards without their index", INDEX_NAME)),
        (lambda path: (path / INDEX_NAME).write_text("{}"), ("weight_map",)),
        (
            lambda path: edit_json(
                path / INDEX_NAME, lambda index: index["weight_map"].update({EMBED: "../../etc"})
            ),
            (EMBED, "'../../etc'", "the name of a file beside it"),
        ),
        (lambda path: (path / "config.json").unlink(), ("config.json is missing",)),
        (lambda path: (path / "config.json").write_text("{"), ("not valid JSON",)),
        (lambda path: (path / "config.json").write_bytes(b"\xff{}"), ("not UTF-8",)),
        (lambda path: (path / "config.json").write_text("[]"), ("JSON object",)),
        (lambda path: (path / "config.json").write_text('{"a":1,"a":2}'), ("appears twice",)),
        (_config(hidden_size=256), (EMBED, "[128, 128]", "[128, 256], by config.json")),
        (_config(num_hidden_layers=5), ("missing from the checkpoint", "model.layers.3.")),
        (_config(num_hidden_layers=1), ("model.layers.1.enorm", "missing")),
        (_config(quantization_config=None), ("number format", "F8_E4M3", "quantization_config")),
        (_config(q_lora_rank=None), ("missing", "q_proj.weight")),
        (_config(n_routed_experts=2, n_group=1), ("mlp.gate", "wrong shape", "[4, 128]")),
    ],
)
def test_each_damage_has_its_error(checkpoint: Path, damage: Damage, said: tuple[str, ...]) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        read_index(checkpoint)
    for text in said:
        assert text in str(caught.value)


def test_bf16_weights_where_the_config_says_fp8(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)
    _config(quantization_config=FP8)(tmp_path)
    with pytest.raises(CheckpointError, match="weight_scale_inv"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [("pytorch_model.bin", "pickled"), ("model.gguf", "GGUF"), ("README.md", "no weights")],
)
def test_other_kinds_of_weights_are_refused(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_V3))
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=found):
        read_index(tmp_path)


def test_paths_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "DeepSeek-V3").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for path, said in (
        (tmp_path / "DeepSeek-v3", f"nearest: {tmp_path / 'DeepSeek-V3'}"),
        (tmp_path / "file", "is a file"),
        (Path("deepseek-ai/DeepSeek-V3"), "hf download deepseek-ai/DeepSeek-V3"),
        (tmp_path / "no" / "such", "does not exist"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (Path("null\0byte"), "does not exist"),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_index(path)
        assert said in str(caught.value)


def test_tables_of_old_exporters_are_ignored(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)

    def add(header: dict[str, Any]) -> None:
        end = max(one["data_offsets"][1] for name, one in header.items() if "meta" not in name)
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header["model.layers.0.self_attn.rotary_emb.inv_freq"] = entry

    edit_header(tmp_path / "model.safetensors", add)
    read_index(tmp_path)
    edit_header(
        tmp_path / "model.safetensors",
        lambda header: header.update(
            {"model.layers.0.self_attn.q_a_proj.bias": header.popitem()[1]}
        ),
    )
    with pytest.raises(CheckpointError, match=r"q_a_proj\.bias"):
        read_index(tmp_path)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_random_damage_is_a_checkpoint_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        }
    ).encode()
    content = bytearray(len(header).to_bytes(8, "little") + header + bytes(22))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    file.write_bytes(content)
    tensors: tuple[StoredTensor, ...] = ()
    with suppress(CheckpointError):
        tensors = read_header(file)
    assert all(0 <= one.start <= one.stop <= len(content) for one in tensors)
