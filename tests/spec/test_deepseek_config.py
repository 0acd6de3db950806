"""Parsed configs against transformers' config classes (both spellings of the same model) and
against a table of wrong values with the errors they must give."""

from __future__ import annotations

import math
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV2Config, DeepseekV3Config

from fathom.errors import CheckpointError
from fathom.spec.deepseek import parse_config
from fathom.spec.formats import BFLOAT16, FLOAT32, FP8_BLOCK
from fathom.spec.model import Mla, Moe, Rope, Yarn
from tests.spec.published_configs import DEEPSEEK_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V3


def test_v3() -> None:
    spec = parse_config(DEEPSEEK_V3)
    assert spec.mla == Mla(128, 1536, 512, 128, 64, 128)
    assert spec.mla.latent_dim == 576
    assert spec.moe == Moe(256, 1, 8, 8, 4, 2048, "sigmoid", "noaux_tc", True, 2.5)
    assert spec.rope == Rope(10000.0, True, Yarn(40.0, 4096, 32.0, 1.0, 1.0, 1.0))
    assert spec.dense_layers == {0, 1, 2}
    assert (spec.num_layers, spec.num_mtp_layers, spec.max_position) == (61, 1, 163840)
    assert (spec.weight_format, spec.dtype) == (FP8_BLOCK, BFLOAT16)
    assert (spec.bos_token_id, spec.eos_token_ids) == (0, (1,))
    assert not spec.is_moe_layer(2)
    assert spec.is_moe_layer(3)
    assert spec.is_moe_layer(61)


def test_v2_and_v2_lite() -> None:
    spec, lite = parse_config(DEEPSEEK_V2), parse_config(DEEPSEEK_V2_LITE)
    assert spec.moe == Moe(160, 2, 6, 8, 3, 1536, "softmax", "group_limited_greedy", False, 16.0)
    assert lite.moe == Moe(64, 2, 6, 1, 1, 1408, "softmax", "greedy", False, 1.0)
    assert lite.mla.q_lora_rank is None
    assert spec.num_mtp_layers == 0
    assert spec.weight_format == BFLOAT16


@pytest.mark.parametrize(
    ("config_class", "published"),
    [
        (DeepseekV3Config, DEEPSEEK_V3),
        (DeepseekV2Config, DEEPSEEK_V2),
        (DeepseekV2Config, DEEPSEEK_V2_LITE),
    ],
)
def test_what_transformers_writes_reads_the_same(
    config_class: type, published: dict[str, Any]
) -> None:
    """transformers 5 writes `rope_parameters`, `dtype`, and every class default."""
    # A deep copy: transformers writes into the dictionaries that it is given.
    rewritten = config_class(**deepcopy(published)).to_dict()
    assert "rope_parameters" in rewritten
    assert "rope_scaling" not in rewritten
    assert parse_config(rewritten) == parse_config(published)


@pytest.mark.parametrize("config_class", [DeepseekV3Config, DeepseekV2Config])
def test_missing_keys_take_the_class_defaults(config_class: type) -> None:
    """Older versions of transformers left out what equals the default."""
    written = config_class(num_experts_per_tok=6).to_dict()
    name = "DeepseekV3ForCausalLM" if config_class is DeepseekV3Config else "DeepseekV2ForCausalLM"
    short = {"architectures": [name], "num_experts_per_tok": 6}
    assert parse_config(short) == parse_config(written)


def test_model_type_stands_in_for_architectures() -> None:
    config = {**DEEPSEEK_V3, "architectures": None}
    assert parse_config(config).architecture == "DeepseekV3ForCausalLM"


def test_several_eos_tokens_and_torch_prefix() -> None:
    spec = parse_config({**DEEPSEEK_V3, "eos_token_id": [1, 5, 1], "torch_dtype": "torch.float32"})
    assert spec.eos_token_ids == (1, 5)
    assert spec.dtype == FLOAT32


def test_every_second_layer_dense_and_no_experts_at_all() -> None:
    spec = parse_config({**DEEPSEEK_V3, "num_hidden_layers": 7, "moe_layer_freq": 2})
    assert spec.dense_layers == {0, 1, 2, 3, 5}
    spec = parse_config({**DEEPSEEK_V3, "num_hidden_layers": 2, "n_routed_experts": None})
    assert spec.moe is None
    assert spec.dense_layers == {0, 1}
    assert not spec.is_moe_layer(2)


def test_v2_scales_weights_only_where_it_does_not_normalise() -> None:
    moe = parse_config({**DEEPSEEK_V2, "norm_topk_prob": True}).moe
    assert moe is not None
    assert (moe.normalize_weights, moe.routed_scale) == (True, 1.0)


_YARN = DEEPSEEK_V3["rope_scaling"]
_FP8 = DEEPSEEK_V3["quantization_config"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_experts_per_tok", 300, ("300", "at most n_routed_experts, 256")),
        ("num_experts_per_tok", None, ("None", "whole number")),
        ("n_group", 7, ("7", "divisor of n_routed_experts")),
        ("n_group", 256, ("256", "groups of two experts")),
        ("topk_group", 9, ("9", "at most n_group, 8")),
        ("qk_rope_head_dim", 63, ("63", "even")),
        ("hidden_size", -7168, ("-7168", "from 1")),
        # Once a list of so many layers was made before anything was checked: it never ended.
        ("num_hidden_layers", 10**10, ("10000000000", "to 1024")),
        ("n_routed_experts", 10**10, ("10000000000", "to 8192")),
        ("hidden_size", "7168", ("'7168'", "whole number")),
        ("hidden_size", True, ("True", "whole number")),
        ("hidden_size", 2**80, ("whole number from",)),
        ("num_hidden_layers", 0, ("0", "from 1")),
        ("rms_norm_eps", math.nan, ("nan", "finite")),
        ("rms_norm_eps", 0.0, ("above 0",)),
        ("rope_theta", math.inf, ("inf", "finite")),
        ("vocab_size", 12.5, ("12.5", "whole number")),
        ("topk_method", "noaux", ("nearest: noaux_tc",)),
        ("scoring_func", "sqrtsoftplus", ("softmax, sigmoid",)),
        ("hidden_act", "gelu", ("gelu", "silu")),
        ("attention_bias", True, ("True", "not implemented")),
        ("num_key_value_heads", 8, ("8", "128 (num_attention_heads)")),
        ("eos_token_id", 129280, ("129280", "0 to 129279")),
        ("eos_token_id", [1, -1], ("-1",)),
        ("bos_token_id", "0", ("'0'", "token id")),
        ("torch_dtype", "int8", ("int8", "bfloat16")),
        ("tie_word_embeddings", "no", ("'no'", "true or false")),
        ("rope_scaling", [], ("JSON object",)),
        ("rope_scaling", {"factor": 40}, ("rope_type", "default or yarn")),
        ("rope_scaling", {"type": "longrope"}, ("longrope", "default, yarn")),
        ("rope_scaling", {**_YARN, "factor": None}, ("factor", "None")),
        ("rope_scaling", {**_YARN, "factor": 0.5}, ("factor", "1 or more")),
        ("rope_scaling", {**_YARN, "beta_fast": 0.5}, ("beta_fast", "beta_slow")),
        ("rope_scaling", {**_YARN, "attention_factor": 1.2}, ("attention_factor",)),
        ("rope_scaling", {**_YARN, "truncate": False}, ("truncate",)),
        ("quantization_config", {"quant_method": "bitsandbytes"}, ("bitsandbytes", "fp8, awq")),
        ("quantization_config", {**_FP8, "weight_block_size": [64, 64]}, ("[64, 64]",)),
        ("quantization_config", {**_FP8, "weight_block_size": None}, ("weight_block_size",)),
        ("quantization_config", {**_FP8, "activation_scheme": "static"}, ("static",)),
        ("quantization_config", {**_FP8, "fmt": "e5m2"}, ("e5m2",)),
        (
            "quantization_config",
            {**_FP8, "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]},
            ("modules_to_not_convert",),
        ),
        ("compression_config", {"format": "int4"}, ("compression_config",)),
        ("moe_layer_freq", [0, 1], ("[0, 1]", "whole number")),
        ("first_k_dense_replace", -1, ("-1", "from 0")),
    ],
)
def test_wrong_values_are_named(field: str, value: object, said: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config({**DEEPSEEK_V3, field: value})
    for text in (*said, field, "config.json"):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("architectures", "said"),
    [
        (["DeepseekV32ForCausalLM"], "nearest: DeepseekV3ForCausalLM"),
        (["LlamaForCausalLM"], "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM"),
        ([], "found: []"),
        ("DeepseekV3ForCausalLM", "one of"),
        ([{"a": 1}], "one of"),
    ],
)
def test_other_architectures_are_refused(architectures: object, said: str) -> None:
    with pytest.raises(CheckpointError, match="architectures") as caught:
        parse_config({**DEEPSEEK_V3, "architectures": architectures})
    assert said in str(caught.value)


def test_fp8_that_keeps_what_deepseek_keeps() -> None:
    kept = {**_FP8, "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.gate"]}
    spec = parse_config({**DEEPSEEK_V3, "quantization_config": kept})
    assert spec.weight_format == FP8_BLOCK


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
_PLACES = [
    *((key,) for key in DEEPSEEK_V3),
    *(("rope_scaling", key) for key in _YARN),
    *(("quantization_config", key) for key in _FP8),
]


@given(edits=st.lists(st.tuples(st.sampled_from(_PLACES), _JSON), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_random_values_give_a_model_or_a_checkpoint_error(
    edits: list[tuple[tuple[str, ...], object]],
) -> None:
    config = deepcopy(DEEPSEEK_V3)
    for place, value in edits:
        target = config
        for key in place[:-1]:
            target = target[key] if isinstance(target.get(key), dict) else {}
        target[place[-1]] = value
    with suppress(CheckpointError):
        parse_config(config)
