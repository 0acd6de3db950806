"""Parameters that are read when taken, against a dictionary of the same parameters, and the memory
of the process against what was taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import BFLOAT16, FLOAT32, INT8_CHANNEL, Format
from fathom.spec.parallel import Shard
from fathom.weights.lazy import LazyParameters
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.save import _header
from fathom.weights.synthetic import write_checkpoint
from tests.weights.tiny_checkpoints import FP8, TINY_FP8, TINY_V3

COPY, EMBED = "model.layers.2.embed_tokens.weight", "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def _load(path: Path, **options: Any) -> LazyParameters:
    chosen = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "dequantize": False}
    return load_parameters(open_checkpoint(path), Shard(), **chosen | options)


def test_it_behaves_like_a_dictionary(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)
    loaded, stored = _load(tmp_path), load_file(tmp_path / "model.safetensors")
    assert len(loaded) == len(stored)
    assert set(loaded) == set(stored)
    assert UP in loaded
    assert torch.equal(loaded.pop(UP), stored[UP])  # type: ignore[arg-type]
    assert UP not in loaded
    assert loaded.pop(UP, None) is None
    for take in (loaded.pop, loaded.borrow, loaded.__getitem__, loaded.__delitem__):
        with pytest.raises(KeyError):
            take(UP)
    loaded[UP] = torch.zeros(2)
    assert len(loaded) == len(stored)
    assert torch.equal(loaded.borrow(UP), torch.zeros(2))  # type: ignore[arg-type]
    for name in list(loaded):
        del loaded[name]
    assert not loaded


@pytest.mark.parametrize("config", [TINY_V3, TINY_FP8])
def test_what_is_borrowed_is_a_view_of_the_file(config: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(config, tmp_path)
    owned, loaded = _load(tmp_path), _load(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    for name in list(loaded):
        value, other = loaded.borrow(name), owned[name]
        if isinstance(value, QTensor):
            assert isinstance(other, QTensor)
            value, other = value.data.view(torch.uint8), other.data.view(torch.uint8)
        assert torch.equal(value, other)  # type: ignore[arg-type]
        # These are multiplied out where they are in blocks.
        if name.endswith("_proj.weight") and "kv_b" not in name and "q_a" not in name:
            assert value.untyped_storage().nbytes() == size, name
            assert other.untyped_storage().nbytes() < size
    assert not loaded


def test_asking_whether_a_parameter_is_there_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read, unpacked and dropped each matrix once: half of the time that loading took."""
    write_checkpoint(TINY_V3, tmp_path)
    loaded = _load(tmp_path)
    monkeypatch.setattr("fathom.weights.open.place", None)
    assert UP in loaded
    assert COPY in loaded
    assert "model.other.weight" not in loaded


def test_copies_are_shared_until_the_last_is_taken(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)
    loaded = _load(tmp_path)
    first = loaded.pop(EMBED)
    assert loaded[COPY] is first
    assert loaded.borrow(COPY) is first
    assert not loaded._shared


@pytest.mark.parametrize(
    ("options", "held"),
    [({"dtype": torch.float32}, FLOAT32), ({"quantization": "int8"}, INT8_CHANNEL), ({}, BFLOAT16)],
)
def test_the_borrower_converts(options: dict[str, Any], held: Format, tmp_path: Path) -> None:
    """What is lent is as it is stored; the format in which it is to be held is told."""
    write_checkpoint(TINY_V3, tmp_path)
    loaded = _load(tmp_path, **options)
    assert loaded.held_format(UP) == held
    found = loaded.borrow(UP)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.bfloat16
    assert found.untyped_storage().nbytes() == (tmp_path / "model.safetensors").stat().st_size


_MEASURE = """
import sys, torch
from pathlib import Path
from fathom.spec.parallel import Shard
from fathom.weights.open import load_parameters, open_checkpoint

def resident(kind):
    line = next(l for l in open("/proc/self/status") if l.startswith(kind))
    return int(line.split()[1]) * 1024

loaded = load_parameters(open_checkpoint(Path(sys.argv[1])), Shard(), dtype=torch.bfloat16,
                         device=torch.device("cpu"), dequantize=False)
before = {kind: resident(kind) for kind in ("RssAnon", "RssFile")}
largest, total = dict.fromkeys(before, 0), 0
for name in list(loaded):
    value = loaded.borrow(name)
    tensors = (value,) if isinstance(value, torch.Tensor) else value.tensors
    for one in tensors:
        total += int(one.view(-1).view(torch.uint8)[::1024].sum())
    del value, tensors
    for kind in before:
        largest[kind] = max(largest[kind], resident(kind) - before[kind])
print(largest["RssAnon"], largest["RssFile"])
"""


@pytest.mark.parametrize("quantization", [None, FP8])
def test_memory_stays_far_below_the_file(quantization: object, tmp_path: Path) -> None:
    """More than 1 GB of weights, zeros without blocks on disk, every page of them read."""
    config = {
        **TINY_V3,
        "hidden_size": 1024,
        "n_routed_experts": 96,
        "moe_intermediate_size": 2048 if quantization is None else 4096,
        "num_nextn_predict_layers": 0,
        "quantization_config": quantization,
    }
    table = parameter_table(parse_config(config))
    size = sum(row.format.num_bytes(row.shape) for row in table)
    assert size > 1.0e9
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(_header(table))
        stream.truncate(stream.tell() + size)
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    anonymous, of_file = map(int, done.stdout.split())
    assert anonymous < 2**26
    assert of_file < 2**29
