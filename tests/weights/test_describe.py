"""Descriptions of directories against the known models, and against indexes of the right and of the
wrong size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import CheckpointError, ConfigError
from fathom.spec.families import parameters, parse_model
from fathom.spec.known import find_model
from fathom.weights.describe import describe_model
from tests.spec.published_configs import DEEPSEEK_V3

_AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 128,
    "version": "gemm",
    "zero_point": True,
}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
_DENSE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


def _write(path: Path, config: object, total: int | None = None, names: object = None) -> str:
    (path / "config.json").write_text(json.dumps(config))
    if total is not None:
        index = {"metadata": {"total_size": total}, "weight_map": names or {}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(path)


def test_a_name_is_a_known_model() -> None:
    assert describe_model("r1") == find_model("DeepSeek-R1")
    with pytest.raises(ConfigError, match="neither known nor a directory"):
        describe_model("no/such/model")


def test_a_directory_with_a_config_is_enough(tmp_path: Path) -> None:
    found, known = describe_model(_write(tmp_path, DEEPSEEK_V3)), find_model("V3")
    assert found.spec == known.spec
    assert found.main_parameters == known.main_parameters
    assert found.mtp_parameters == known.mtp_parameters
    assert found.name == tmp_path.name


def test_mtp_layers_that_are_not_stored_do_not_count(tmp_path: Path) -> None:
    spec = parse_model({**DEEPSEEK_V3, "num_nextn_predict_layers": 0})
    rows = parameters(spec)
    total = sum(row.format.num_bytes(row.shape) for row in rows)
    path = _write(tmp_path, DEEPSEEK_V3, total, {row.name: "a" for row in rows})
    assert describe_model(path).spec == spec


def test_the_size_of_the_published_repository_agrees_with_v3(tmp_path: Path) -> None:
    """688,586,727,753 bytes of safetensors, headers and the MTP layer's copies included."""
    names = {row.name: "a" for row in parameters(parse_model(DEEPSEEK_V3))}
    path = _write(tmp_path, DEEPSEEK_V3, 688_586_727_753, names)
    assert describe_model(path).mtp_parameters == 11_610_068_224


@pytest.mark.parametrize(
    ("quantization", "wanted"), [(None, "bfloat16"), (_AWQ, "int4"), (_GPTQ, "int4")]
)
def test_dense_directories_in_any_format(
    tmp_path: Path, quantization: dict[str, object] | None, wanted: str
) -> None:
    found = describe_model(_write(tmp_path, {**_DENSE, "quantization_config": quantization}))
    assert found.native_format == wanted
    assert found.main_parameters == find_model("R1-Distill-Qwen-7B").main_parameters


@pytest.mark.parametrize("group", [32, 64, 128])
def test_an_index_of_packed_weights_agrees(tmp_path: Path, group: int) -> None:
    """By the layout's definition: of K x N, K N / 2 bytes of values, a float16 scale and four bits
    of zero point for each group; the rest in two bytes."""
    layers, hidden, inner, keys = 28, 3584, 18944, 512
    packed = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    plain = find_model("R1-Distill-Qwen-7B").main_parameters - packed
    total = packed // 2 + packed // group * 5 // 2 + plain * 2
    config = {**_DENSE, "quantization_config": {**_AWQ, "group_size": group}}
    assert describe_model(_write(tmp_path, config, total, {"x": "a"})).native_format == "int4"
    with pytest.raises(CheckpointError, match="total_size"):
        describe_model(_write(tmp_path, config, total * 102 // 100, {"x": "a"}))


def test_an_index_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="total_size"):
        describe_model(_write(tmp_path, DEEPSEEK_V3, 471_500_000_000, {"x": "a"}))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        describe_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="weight_map"):
        describe_model(_write(tmp_path, _DENSE, 1, [1]))
