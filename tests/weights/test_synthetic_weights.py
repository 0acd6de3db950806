"""Random weights made on a device against the same checkpoint written and loaded, and saved
checkpoints against what was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fathom.errors import CheckpointError
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek import parse_config
from fathom.spec.parallel import Layout, Shard
from fathom.weights.index import INDEX_NAME, read_index
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.save import save_checkpoint
from fathom.weights.synthetic import random_parameter, random_parameters, write_checkpoint
from tests.weights.tiny_checkpoints import TINY_FP8, TINY_V2, TINY_V3

CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [TINY_FP8, TINY_V3, TINY_V2])
@pytest.mark.parametrize("tp", [1, 2])
def test_made_equals_written_and_loaded(config: dict[str, Any], tp: int, tmp_path: Path) -> None:
    write_checkpoint(config, tmp_path, seed=9)
    checkpoint = open_checkpoint(tmp_path)
    for rank in range(tp):
        shard = Shard(Layout(tp=tp), rank)
        loaded = load_parameters(
            checkpoint, shard, dtype=torch.float32, device=CPU, dequantize=False
        )
        made = random_parameters(
            parse_config(config), shard, seed=9, dtype=torch.float32, device=CPU
        )
        assert made.keys() == loaded.keys()
        for name, value in made.items():
            other = loaded[name]
            if isinstance(value, QTensor):
                assert isinstance(other, QTensor)
                assert torch.equal(value.scale, other.scale)
                value, other = value.data.view(torch.uint8), other.data.view(torch.uint8)
            assert torch.equal(value, other), name  # type: ignore[arg-type]


def test_values_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    for name, shard_bytes in (("a", 10**9), ("b", 100_000)):
        write_checkpoint(TINY_V3, tmp_path / name, seed=4, max_shard_bytes=shard_bytes)
    whole = load_file(tmp_path / "a" / "model.safetensors")
    parts: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "b").glob("*.safetensors"):
        parts |= load_file(file)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    row = read_index(tmp_path / "a").table[0]
    assert not torch.equal(random_parameter(row, seed=4), random_parameter(row, seed=5))


def test_shards_keep_to_their_size_and_the_index_to_its_format(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path, max_shard_bytes=150_000)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):06d}.safetensors"
    tensors = [load_file(tmp_path / file) for file in files]
    sizes = [sum(t.nbytes for t in one.values()) for one in tensors]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert all(size <= 150_000 for size in sizes)


def test_one_shard_replaces_an_older_index(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path, max_shard_bytes=150_000)
    write_checkpoint(TINY_V3, tmp_path)
    assert not (tmp_path / INDEX_NAME).exists()
    read_index(tmp_path)


def test_a_wrong_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight cannot be written"):
        save_checkpoint(TINY_V3, tmp_path, lambda _: torch.zeros(2, 2))
    with pytest.raises(CheckpointError, match="wanted: QTensor"):
        save_checkpoint(TINY_FP8, tmp_path, lambda row: torch.zeros(row.shape))


def test_deep_stacks_stay_finite() -> None:
    """Random layers keep the variance of what passes through them."""
    spec = parse_config(TINY_V3)
    made = random_parameters(spec, Shard(), seed=0, dtype=torch.float32, device=CPU)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight = made["model.layers.0.mlp.gate_proj.weight"]
    assert isinstance(weight, torch.Tensor)
    assert 0.8 < float((x @ weight.T).std()) < 1.25
