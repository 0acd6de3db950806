"""quantization_config in published spellings against the tensors that such checkpoints store, and
wrong values against the errors that they must give."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import CheckpointError
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import INT8_CHANNEL, int4_group
from fathom.spec.quantization import METHODS
from fathom.spec.stored import StoredPart
from tests.spec.published_configs import DEEPSEEK_V2_LITE, DEEPSEEK_V3

AWQ: dict[str, Any] = {
    "bits": 4,
    "group_size": 64,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
GPTQ: dict[str, Any] = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "damp_percent": 0.01,
    "desc_act": False,
    "group_size": 128,
    "lm_head": False,
    "quant_method": "gptq",
    "sym": True,
    "true_sequential": True,
}
W8A8: dict[str, Any] = {"quant_method": "w8a8_int8", "is_dynamic": True, "ignore": ["lm_head"]}
# As llm-compressor writes it.
COMPRESSED: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "input_activations": {
                "actorder": None,
                "block_structure": None,
                "dynamic": True,
                "group_size": None,
                "num_bits": 8,
                "observer": "memoryless",
                "observer_kwargs": {},
                "strategy": "token",
                "symmetric": True,
                "type": "int",
            },
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": None,
                "num_bits": 8,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "channel",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "int-quantized",
    "global_compression_ratio": 1.0,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
}
CONFIGS = {"awq": AWQ, "gptq": GPTQ, "w8a8_int8": W8A8, "compressed-tensors": COMPRESSED}
ROUTED = "model.layers.3.mlp.experts.7.down_proj"


def _parts(config: dict[str, Any], name: str) -> tuple[StoredPart, ...]:
    spec = parse_config({**DEEPSEEK_V3, "quantization_config": config})
    return next(row.parts for row in parameter_table(spec) if row.name == f"{name}.weight")


def _tensors(config: dict[str, Any], name: str = ROUTED) -> dict[str, tuple[int, ...]]:
    return {part.name.removeprefix(f"{name}."): part.shape for part in _parts(config, name)}


def test_tensors_of_an_expert() -> None:
    """V3's down projection, 7168 outputs and 2048 inputs, in each layout's own words."""
    assert _tensors(AWQ) == {
        "qweight": (2048, 896),
        "qzeros": (32, 896),
        "scales": (32, 7168),
    }
    assert _tensors(GPTQ) == {
        "qweight": (256, 7168),
        "qzeros": (16, 896),
        "scales": (16, 7168),
        "g_idx": (2048,),
    }
    for config in (W8A8, COMPRESSED):
        assert _tensors(config) == {"weight": (7168, 2048), "weight_scale": (7168, 1)}


@pytest.mark.parametrize("method", CONFIGS)
def test_every_matrix_but_the_kept_ones(method: str) -> None:
    """DeepSeek's own FP8 quantises the same matrices."""
    fp8 = parameter_table(parse_config(DEEPSEEK_V3))
    spec = parse_config({**DEEPSEEK_V3, "quantization_config": CONFIGS[method]})
    table = parameter_table(spec)
    assert [row.name for row in table] == [row.name for row in fp8]
    assert [row.format.block is None for row in table] == [row.format.block is None for row in fp8]
    assert spec.weight_format == {"awq": int4_group(64), "gptq": int4_group(128)}.get(
        method, INT8_CHANNEL
    )


@pytest.mark.parametrize(
    ("method", "key", "listed", "wanted"),
    [
        ("awq", "modules_to_not_convert", ["shared_experts.up"], {"shared_up"}),
        ("awq", "modules_to_not_convert", ["self_attn"], {"q_a", "q_b", "kv_a", "kv_b", "o"}),
        ("gptq", "modules_to_not_convert", ["kv_b_proj"], {"kv_b"}),
        ("w8a8_int8", "ignore", ["lm_head", "mlp.down"], {"dense_down"}),
        # Exact names, or patterns from the start of a name.
        ("compressed-tensors", "ignore", ["kv_b_proj", "lm_head"], set()),
        ("compressed-tensors", "ignore", ["model.layers.0.self_attn.kv_b_proj"], {"kv_b"}),
        ("compressed-tensors", "ignore", [r"re:.*self_attn\.kv_[ab].*$"], {"kv_a", "kv_b"}),
        (
            "compressed-tensors",
            "ignore",
            [r"re:model\.layers\.\d+\.mlp\.(gate|up)_proj"],
            {"dense_gate", "dense_up"},
        ),
        ("compressed-tensors", "ignore", ["re:layers"], set()),
    ],
)
def test_modules_that_are_kept(method: str, key: str, listed: list[str], wanted: set[str]) -> None:
    config = {**DEEPSEEK_V3, "quantization_config": {**CONFIGS[method], key: listed}}
    changed = parameter_table(parse_config(config))
    usual = parameter_table(
        parse_config({**DEEPSEEK_V3, "quantization_config": {**CONFIGS[method], key: []}})
    )
    kept = {
        one.role
        for one, two in zip(changed, usual, strict=True)
        if one.format != two.format and one.format.name == "bfloat16"
    }
    assert kept == wanted


def _with(path: str, value: object, method: str) -> dict[str, Any]:
    config = deepcopy(CONFIGS[method])
    target = config
    *way, last = path.split("/")
    for key in way:
        target = target[key]
    target[last] = value
    return config


@pytest.mark.parametrize(
    ("method", "path", "value", "said"),
    [
        ("awq", "bits", 8, ("bits", "8")),
        ("awq", "group_size", 16, ("group_size", "16", "32, 64, 128")),
        ("awq", "group_size", -1, ("group_size", "-1")),
        ("awq", "zero_point", False, ("zero_point", "False")),
        ("awq", "version", "gemv", ("version", "gemv")),
        ("awq", "modules_to_not_convert", "lm_head", ("modules_to_not_convert",)),
        ("awq", "modules_to_not_convert", [3], ("modules_to_not_convert",)),
        ("gptq", "desc_act", True, ("desc_act", "True", "not implemented")),
        ("gptq", "bits", 3, ("bits", "3")),
        ("gptq", "checkpoint_format", "marlin", ("checkpoint_format", "marlin")),
        ("gptq", "lm_head", True, ("lm_head",)),
        ("gptq", "dynamic", {"-:.*mlp.*": {}}, ("dynamic",)),
        ("gptq", "modules_in_block_to_quantize", [["q"]], ("modules_in_block_to_quantize",)),
        ("w8a8_int8", "quant_description", {"a": "FLOAT"}, ("quant_description", "ignore")),
        ("w8a8_int8", "ignore", {"a": 1}, ("ignore",)),
        ("compressed-tensors", "format", "pack-quantized", ("format", "pack-quantized")),
        ("compressed-tensors", "kv_cache_scheme", {"num_bits": 8}, ("kv_cache_scheme",)),
        ("compressed-tensors", "sparsity_config", {"format": "2:4"}, ("sparsity_config",)),
        ("compressed-tensors", "config_groups", {}, ("config_groups",)),
        ("compressed-tensors", "config_groups/group_0/targets", ["re:x"], ("config_groups",)),
        ("compressed-tensors", "config_groups/group_0/weights/num_bits", 4, ("num_bits", "4")),
        ("compressed-tensors", "config_groups/group_0/weights/strategy", "group", ("strategy",)),
        ("compressed-tensors", "config_groups/group_0/weights/symmetric", False, ("symmetric",)),
        ("compressed-tensors", "config_groups/group_0/weights/type", "float", ("type", "float")),
        (
            "compressed-tensors",
            "config_groups/group_0/input_activations/dynamic",
            False,
            ("dynamic", "static"),
        ),
        ("compressed-tensors", "ignore", ["re:("], ("ignore", "re:(")),
        ("compressed-tensors", "ignore", ["re:(a+)+b"], ("ignore", "(a+)+b")),
        ("compressed-tensors", "ignore", ["re:" + ".*" * 7], ("ignore",)),
    ],
)
def test_wrong_values_are_named(
    method: str, path: str, value: object, said: tuple[str, ...]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config({**DEEPSEEK_V3, "quantization_config": _with(path, value, method)})
    for text in (*said, "quantization_config"):
        assert text in str(caught.value)


def test_groups_that_do_not_fit_are_named() -> None:
    """V2-Lite's dense MLP has 10944 = 85.5 * 128 inputs."""
    config = {**DEEPSEEK_V2_LITE, "quantization_config": {**AWQ, "group_size": 128}}
    with pytest.raises(CheckpointError, match="in groups of 128") as caught:
        parameter_table(parse_config(config))
    assert "model.layers.0.mlp.down_proj.weight" in str(caught.value)
    assert "10944 inputs" in str(caught.value)
    kept = {**AWQ, "group_size": 128, "modules_to_not_convert": ["mlp.down_proj"]}
    assert parameter_table(parse_config({**DEEPSEEK_V2_LITE, "quantization_config": kept}))


def test_old_names_of_awq() -> None:
    old = {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "zero_point": True}
    spec = parse_config({**DEEPSEEK_V3, "quantization_config": {**old, "version": "GEMM"}})
    assert (spec.weight_format, spec.packing) == (int4_group(128), "awq")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(data=st.data(), method=st.sampled_from(sorted(CONFIGS)))
@settings(max_examples=150, deadline=None)
def test_random_values_give_a_model_or_a_checkpoint_error(data: st.DataObject, method: str) -> None:
    config = deepcopy(CONFIGS[method])
    for _ in range(data.draw(st.integers(1, 3))):
        config[data.draw(st.sampled_from(sorted(config)))] = data.draw(_JSON)
    if data.draw(st.booleans()):
        config["quant_method"] = data.draw(st.sampled_from(METHODS))
    with suppress(CheckpointError):
        parse_config({**DEEPSEEK_V3, "quantization_config": config})


@given(st.text(alphabet="ab.*+?()[]|\\^$d-", max_size=40))
@settings(max_examples=300, deadline=1000)
def test_patterns_are_quick_or_refused(pattern: str) -> None:
    """A name that almost matches is the worst case; a pattern of nested repeats takes for ever."""
    config = {**COMPRESSED, "ignore": [f"re:{pattern}"]}
    fields = {**DEEPSEEK_V2_LITE, "vocab_size": 200000, "num_hidden_layers": 1}
    fields["n_routed_experts"] = None
    with suppress(CheckpointError):
        parameter_table(parse_config({**fields, "quantization_config": config}))
