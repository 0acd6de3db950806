"""Quantised checkpoints of published layouts against an unpacker in numpy, and damage done to them
against the errors that it must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.errors import CheckpointError
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import int4_group
from fathom.spec.parallel import Layout, Shard, owned_slice
from fathom.weights.index import read_index
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.synthetic import random_parameters, write_checkpoint
from fathom.weights.verify import verify_checkpoint
from tests.weights.published_layouts import AWQ, QUANTIZED, stored_tensors, stored_value
from tests.weights.tiny_checkpoints import TINY_V3

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.experts.2.up_proj"


@pytest.fixture(params=QUANTIZED)
def method(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint_dir(method: str, tmp_path: Path) -> Path:
    write_checkpoint(QUANTIZED[method], tmp_path, seed=3, max_shard_bytes=100_000)
    return tmp_path


def _layout(method: str) -> str:
    return method.removesuffix("128")


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dequantize", [True, False])
def test_every_rank_reads_its_part_exactly(
    checkpoint_dir: Path, method: str, tp: int, dequantize: bool
) -> None:
    checkpoint = open_checkpoint(checkpoint_dir)
    stored = stored_tensors(checkpoint_dir)
    for rank in range(tp):
        shard = Shard(Layout(tp=tp), rank)
        options: dict[str, Any] = {"dtype": torch.float32, "device": CPU, "dequantize": dequantize}
        loaded = load_parameters(checkpoint, shard, **options)
        borrowed = load_parameters(checkpoint, shard, **options)
        made = random_parameters(checkpoint.spec, shard, seed=3, **options)
        num_quantised = 0
        for row in checkpoint.table:
            expected = stored_value(stored, row.name, _layout(method))
            expected = expected[owned_slice(row.shard, row.shape, shard)]
            lent = borrowed.borrow(row.name)
            # As stored.
            if isinstance(lent, torch.Tensor):
                lent = lent.to(torch.float32)
            elif isinstance(lent, PackedInt4):
                lent = lent.unpacked()
            for found in (loaded[row.name], lent, made[row.name]):
                if isinstance(found, QTensor):
                    num_quantised += 1
                    assert not dequantize
                    held = row.local_format(shard, checkpoint.spec.dtype, dequantize=False)
                    assert found.format == held
                    assert found.offset == (0, 0)
                    found = found.dequantize(torch.float32)
                assert found.dtype == torch.float32
                assert torch.equal(found, expected), row.name
        assert (num_quantised == 0) is dequantize
        assert not borrowed


def test_a_sound_checkpoint_is_verified(checkpoint_dir: Path) -> None:
    statuses = {one.check: one.status for one in verify_checkpoint(checkpoint_dir, deep=True)}
    assert statuses == {"headers": "ok", "manifest": "absent", "contents": "ok"}


def test_random_weights_keep_the_variance(checkpoint_dir: Path, method: str) -> None:
    values = stored_value(stored_tensors(checkpoint_dir), f"{UP}.weight", _layout(method))
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    assert 0.8 < float((x @ values.T).std()) < 1.25


def test_modules_that_are_kept(tmp_path: Path) -> None:
    kept = {**AWQ, "modules_to_not_convert": ["kv_b_proj", "model.layers.0.mlp.down_proj"]}
    write_checkpoint({**TINY_V3, "quantization_config": kept}, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    plain = {name for name in stored if name.endswith("_proj.weight")}
    assert plain == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.2.eh_proj.weight",
        *(f"model.layers.{layer}.self_attn.kv_b_proj.weight" for layer in range(3)),
    }
    loaded = load_parameters(
        open_checkpoint(tmp_path), Shard(), dtype=torch.bfloat16, device=CPU, dequantize=False
    )
    assert isinstance(loaded["model.layers.1.self_attn.o_proj.weight"], QTensor)
    assert loaded["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16  # type: ignore[union-attr]


def test_order_of_groups_may_be_stored(tmp_path: Path) -> None:
    write_checkpoint(QUANTIZED["gptq"], tmp_path)
    _edit(tmp_path, lambda all: all.update({f"{UP}.g_idx": torch.arange(128).int() // 32}))
    loaded = load_parameters(
        open_checkpoint(tmp_path), Shard(), dtype=torch.float32, device=CPU, dequantize=False
    )
    assert isinstance(loaded[f"{UP}.weight"], QTensor)
    assert all(one.status != "failed" for one in verify_checkpoint(tmp_path, deep=True))
    _edit(tmp_path, lambda all: all[f"{UP}.g_idx"].__setitem__(slice(0, 2), 3))
    loaded = load_parameters(
        open_checkpoint(tmp_path), Shard(), dtype=torch.float32, device=CPU, dequantize=False
    )
    with pytest.raises(CheckpointError, match="g_idx puts inputs"):
        loaded.pop(f"{UP}.weight")
    failed = [one for one in verify_checkpoint(tmp_path, deep=True) if one.status == "failed"]
    assert [one.found for one in failed] == ["g_idx puts inputs into groups out of their order"]


def test_a_stored_zero_point_of_minus_one() -> None:
    """AutoGPTQ subtracts one before it shifts 32 unsigned bits into place, so that a zero point of
    0 becomes 15, and spoils what stands above it in its word. It can be nothing else: a range that
    includes zero has zero points from 0 to 15. Some readers take it for 16."""
    points = np.array([[1, 7, 8, 15, 2, 3, 4, 0]])
    stored = (points - 1).astype(np.uint32)
    word = np.bitwise_or.reduce(stored << (4 * np.arange(8, dtype=np.uint32)), axis=1)
    packed = PackedInt4(
        values=torch.zeros(4, 8, dtype=torch.int32),
        scale=torch.ones(1, 8, dtype=torch.float16),
        zero=torch.from_numpy(word.astype(np.uint32).view(np.int32)).view(1, 1),
        packing="gptq",
        format=int4_group(32),
    )
    assert packed.unpacked().zero.flatten().tolist() == points[0].tolist()  # type: ignore[union-attr]


def _edit(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")


def _put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("method", "damage", "said"),
    [
        ("awq", lambda all: all.pop(f"{UP}.qzeros"), ("missing", f"{UP}.qzeros")),
        ("awq", lambda all: all.pop(f"{UP}.qweight"), ("missing", f"{UP}.qweight")),
        ("gptq", lambda all: all.pop(f"{UP}.scales"), ("missing", f"{UP}.scales")),
        ("w8a8", lambda all: all.pop(f"{UP}.weight_scale"), ("missing", f"{UP}.weight_scale")),
        (
            "awq",
            _put(f"{UP}.qweight", torch.zeros(16, 128, dtype=torch.int32)),
            (f"{UP}.qweight", "wrong shape", "[16, 128]", "[128, 16]"),
        ),
        (
            "awq",
            _put(f"{UP}.scales", torch.zeros(2, 128, dtype=torch.float16)),
            (f"{UP}.scales", "wrong shape", "[4, 128]"),
        ),
        (
            "gptq",
            _put(f"{UP}.scales", torch.zeros(4, 128, dtype=torch.bfloat16)),
            (f"{UP}.scales", "wrong number format", "BF16", "F16"),
        ),
        (
            "w8a8",
            _put(f"{UP}.weight", torch.zeros(128, 128, dtype=torch.uint8)),
            (f"{UP}.weight", "U8", "I8"),
        ),
        (
            "awq",
            _put(f"{UP}.g_idx", torch.zeros(128, dtype=torch.int32)),
            ("no place", f"{UP}.g_idx"),
        ),
        (
            "gptq",
            _put(f"{UP}.bias", torch.zeros(128, dtype=torch.float16)),
            ("no place", f"{UP}.bias"),
        ),
    ],
)
def test_each_damage_has_its_error(
    method: str,
    damage: Callable[[dict[str, torch.Tensor]], object],
    said: tuple[str, ...],
    tmp_path: Path,
) -> None:
    write_checkpoint(QUANTIZED[method], tmp_path)
    _edit(tmp_path, damage)
    with pytest.raises(CheckpointError) as caught:
        read_index(tmp_path)
    for text in said:
        assert text in str(caught.value)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize(
    ("method", "name", "dtype"),
    [
        ("awq", f"{UP}.scales", torch.float16),
        ("gptq", f"{UP}.scales", torch.float16),
        ("w8a8", f"{UP}.weight_scale", torch.float32),
        ("w8a8", f"{UP}.weight_scale", torch.bfloat16),
        ("compressed", f"{UP}.weight_scale", torch.float16),
    ],
)
def test_scales_that_are_not_finite(
    method: str, name: str, dtype: torch.dtype, bad: float, tmp_path: Path
) -> None:
    write_checkpoint(QUANTIZED[method], tmp_path)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name][-1, -1] = torch.finfo(dtype).max

    _edit(tmp_path, damage)
    assert all(one.status != "failed" for one in verify_checkpoint(tmp_path, deep=True))
    _edit(tmp_path, lambda tensors: tensors[name].view(-1).__setitem__(5, bad))
    (finding,) = [one for one in verify_checkpoint(tmp_path, deep=True) if one.status == "failed"]
    assert finding.found == "infinities or NaN in the scales"
    loaded = load_parameters(
        open_checkpoint(tmp_path), Shard(), dtype=torch.float32, device=CPU, dequantize=False
    )
    with pytest.raises(CheckpointError, match="infinities or NaN") as caught:
        loaded.pop(f"{UP}.weight")
    assert name in str(caught.value)


def test_a_group_that_does_not_fit(tmp_path: Path) -> None:
    config = {**TINY_V3, "quantization_config": {**AWQ, "group_size": 128}}
    with pytest.raises(CheckpointError, match="in groups of 128") as caught:
        write_checkpoint(config, tmp_path)
    assert "model.layers.0.self_attn.q_b_proj.weight" in str(caught.value)
    assert "96 inputs" in str(caught.value)
