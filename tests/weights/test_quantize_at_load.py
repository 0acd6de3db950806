"""Matrices quantised when they are loaded: against the quantisers applied to the plain tensors, and
against a table of which role is held how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.errors import CheckpointError
from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.int4_group import quantize_int4
from fathom.ops.quant.int8_channel import quantize_int8
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.held import Quantization
from fathom.spec.parallel import Layout, Shard
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.synthetic import random_parameters, write_checkpoint
from tests.weights.published_layouts import QUANTIZED
from tests.weights.tiny_checkpoints import TINY_FP8, TINY_V3

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"dtype": torch.bfloat16, "device": CPU, "dequantize": False}
PLAIN = ("embed", "mtp_embed", "router", "correction_bias")
INT8_BESIDE_INT4 = ("q", "q_a", "kv_a", "kv_b", "head", "mtp_head", "mtp_project")


def wanted_format(role: str, shape: tuple[int, ...], quantization: str) -> str | None:
    """The brief, said once more: name and group of the format; None for plain."""
    if len(shape) == 1 or role in PLAIN:
        return None
    if quantization == "int8" or (quantization == "int4" and role in INT8_BESIDE_INT4):
        return "int8"
    if quantization == "int4":
        groups = [size for size in (128, 64, 32) if shape[1] % size == 0]
        return f"int4 {groups[0]}" if groups else "int8"
    return "plain or fp8_block"


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("config", [TINY_V3, {**TINY_V3, "moe_intermediate_size": 48}])
def test_plain_checkpoints(
    quantization: Quantization, tp: int, config: dict[str, Any], tmp_path: Path
) -> None:
    write_checkpoint(config, tmp_path, seed=1)
    checkpoint = open_checkpoint(tmp_path)
    for rank in {0, tp - 1}:
        shard = Shard(Layout(tp=tp), rank)
        plain = load_parameters(checkpoint, shard, **OPTIONS)
        found = load_parameters(checkpoint, shard, **OPTIONS, quantization=quantization)
        made = random_parameters(
            checkpoint.spec, shard, seed=1, **OPTIONS, quantization=quantization
        )
        kinds = set()
        for row in checkpoint.table:
            value, whole = found[row.name], plain[row.name]
            assert isinstance(whole, torch.Tensor)
            wanted = wanted_format(row.role, tuple(whole.shape), quantization)
            if isinstance(value, torch.Tensor):
                assert wanted is None or wanted.startswith("plain"), row.name
                assert value.equal(whole)
                continue
            kinds.add(value.format.name)
            group = f" {value.block[1]}" if value.format.name == "int4" else ""
            assert wanted is not None
            assert wanted.endswith(value.format.name + group), row.name
            expected = {
                "int8": quantize_int8,
                "int4": lambda whole, size=value.block[1]: quantize_int4(whole, size),
                "fp8_block": quantize_fp8,
            }[value.format.name](whole)
            other = made[row.name]
            assert isinstance(other, QTensor)
            for one, two, three in zip(value.tensors, expected.tensors, other.tensors, strict=True):
                assert one.view(torch.uint8).equal(two.view(torch.uint8)), row.name
                assert one.view(torch.uint8).equal(three.view(torch.uint8)), row.name
        assert quantization[:3] in {kind[:3] for kind in kinds} or tp > 1


@pytest.mark.parametrize("stored", ["fp8", "awq", "awq128", "w8a8"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_checkpoints_in_another_format(
    stored: str, quantization: Quantization, tmp_path: Path
) -> None:
    """What is stored in the format that is asked for is kept exactly; the rest is near."""
    write_checkpoint({"fp8": TINY_FP8, **QUANTIZED}[stored], tmp_path, seed=1)
    checkpoint = open_checkpoint(tmp_path)
    as_stored = load_parameters(checkpoint, Shard(), **OPTIONS)
    found = load_parameters(checkpoint, Shard(), **OPTIONS, quantization=quantization)
    for row in checkpoint.table:
        value, before = found[row.name], as_stored[row.name]
        if not isinstance(value, QTensor):
            continue
        if (stored[:3], quantization) == ("awq", "int4") and isinstance(before, QTensor):
            # int8 beside int4 would be more bytes for the same values
            assert before.format == value.format, row.name
        if isinstance(before, QTensor) and before.format == value.format:
            assert all(
                one.equal(two) for one, two in zip(value.tensors, before.tensors, strict=True)
            )
            continue
        if value.format.name == "int4" and isinstance(before, QTensor):
            assert before.format.name != "int4", "stored groups are kept"
        exact = before.dequantize(torch.float32) if isinstance(before, QTensor) else before.float()
        error = (value.dequantize(torch.float32) - exact).norm() / exact.norm()
        assert error < (0.01 if value.format.name == "int8" else 0.12), row.name


def test_what_cannot_be_held_is_named(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, file)
    for quantization in ("int8", "int4"):
        loaded = load_parameters(
            open_checkpoint(tmp_path), Shard(), **OPTIONS, quantization=quantization
        )
        with pytest.raises(CheckpointError, match=f"{name} cannot be held in {quantization}"):
            loaded.pop(name)
