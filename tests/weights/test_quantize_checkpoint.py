"""Checkpoints that were quantised and written, against an unpacker in numpy, the quantisers, and
the checkpoint that they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.cli import main
from fathom.errors import ConfigError
from fathom.ops.quant.int4_group import quantize_int4
from fathom.ops.quant.int8_channel import quantize_int8
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek import parse_config
from fathom.spec.parallel import Shard
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.quantize import Target, quantization_config, quantize_checkpoint
from fathom.weights.save import save_checkpoint
from fathom.weights.synthetic import write_checkpoint
from fathom.weights.verify import verify_checkpoint
from tests.spec.published_configs import DEEPSEEK_V2_LITE, DEEPSEEK_V3
from tests.weights.published_layouts import QUANTIZED, stored_tensors, stored_value
from tests.weights.tiny_checkpoints import TINY_FP8, TINY_V2, TINY_V3

SOURCES = {"v2": TINY_V2, "v3": TINY_V3, "fp8": TINY_FP8, "gptq": QUANTIZED["gptq"]}


def _read(path: Path) -> dict[str, torch.Tensor | QTensor]:
    checkpoint = open_checkpoint(path)
    options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    return dict(load_parameters(checkpoint, Shard(), **options, dequantize=True))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("target", ["int8", "int4"])
def test_round_trip(name: str, target: Target, tmp_path: Path) -> None:
    source, path = tmp_path / "in", tmp_path / "out"
    write_checkpoint(SOURCES[name], source, seed=2)
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ x }}")
    (source / "modeling.py").write_text("raise SystemExit")
    before = _read(source)
    quantize_checkpoint(
        open_checkpoint(source), path, target=target, group_size=32, max_shard_bytes=200_000
    )
    files = {file.name for file in path.iterdir() if file.suffix != ".safetensors"}
    assert files == {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert all(one.status != "failed" for one in verify_checkpoint(path, deep=True))
    after, stored = _read(path), stored_tensors(path)
    assert set(after) == set(before)
    layout = "awq" if target == "int4" else "w8a8"
    quantised = 0
    for key, value in after.items():
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value, stored_value(stored, key, layout).to(value.dtype)), key
        whole = before[key]
        assert isinstance(whole, torch.Tensor)
        if f"{key.removesuffix('.weight')}.qweight" in stored:
            # What is in these groups already is packed anew, without rounding again.
            wanted = quantize_int4(whole, 32).dequantize(torch.float32)
            assert value.equal(whole if name == "gptq" else wanted), key
        elif f"{key}_scale" in stored:
            assert value.equal(quantize_int8(whole).dequantize(torch.float32)), key
        else:
            assert value.equal(whole.to(stored[key].dtype).to(value.dtype)), key
            continue
        quantised += 1
    assert quantised >= 3 * 2 * 4


def test_mtp_layers_that_were_left_out_stay_out(tmp_path: Path) -> None:
    config = {**TINY_V3, "num_nextn_predict_layers": 0}
    write_checkpoint(config, tmp_path / "in")
    (tmp_path / "in" / "config.json").write_text(json.dumps(TINY_V3))
    quantize_checkpoint(
        open_checkpoint(tmp_path / "in"), tmp_path / "out", target="int8", group_size=128
    )
    assert open_checkpoint(tmp_path / "out").spec.num_mtp_layers == 0


def test_what_does_not_fit_groups() -> None:
    """V2-Lite's dense MLP has 10944 = 85.5 * 128 inputs; all matrices of V3 are in whole groups."""
    lite, v3 = parse_config(DEEPSEEK_V2_LITE), parse_config(DEEPSEEK_V3)

    def kept(config: dict[str, object]) -> object:
        return config["modules_to_not_convert"]

    assert kept(quantization_config(lite, "int4", 128)) == ["lm_head", "kv_b_proj", "mlp.down_proj"]
    assert kept(quantization_config(lite, "int4", 64)) == ["lm_head", "kv_b_proj"]
    assert kept(quantization_config(v3, "int4", 128)) == ["lm_head", "eh_proj", "kv_b_proj"]
    narrow = parse_config({**TINY_V3, "moe_intermediate_size": 96})
    with pytest.raises(ConfigError, match="--group-size") as caught:
        quantization_config(narrow, "int4", 64)
    assert caught.value.wanted == "32"


def test_a_directory_in_the_way(tmp_path: Path) -> None:
    write_checkpoint(TINY_V2, tmp_path / "in")
    checkpoint = open_checkpoint(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path / "in" / "config.json"):
        with pytest.raises(ConfigError, match="in the way"):
            quantize_checkpoint(checkpoint, out, target="int8", group_size=128)


def test_nothing_is_left_of_a_shard_that_fails(tmp_path: Path) -> None:
    def fail(_: object) -> torch.Tensor:
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        save_checkpoint(TINY_V2, tmp_path, fail)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(TINY_V2, tmp_path / "in")
    arguments = ["quantize", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "int4"]
    assert main([*arguments, "--group-size", "32"]) == 0
    said = capsys.readouterr().out
    assert "layer 1" in said
    assert f"of weights in {tmp_path / 'out'}" in said
    assert open_checkpoint(tmp_path / "out").spec.weight_format.block == (1, 32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required"),
        (["in", "out"], "--format"),
        (["in", "out", "--format", "int3"], "int3"),
        (["in", "out", "--format", "int8", "--group-size", "32"], "--group-size goes with"),
        (["in", "out", "--format", "int4", "--group-size", "48"], "32 or 64 or 128"),
        (["nowhere", "out", "--format", "int4"], "nowhere does not exist"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", *arguments]) in (2, 3)
    assert said in capsys.readouterr().err
