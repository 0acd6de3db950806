"""DeepSeek-V2 and V3 configs read into a ModelSpec: DeepSeek's spelling and transformers 5's.

Keys that are absent take the defaults of transformers' config classes, because older versions of it
wrote only what differed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import cast

from fathom.errors import CheckpointError
from fathom.spec.deepseek_defaults import CLASS_DEFAULTS, V2, V3, YARN_DEFAULTS
from fathom.spec.fields import ConfigFields
from fathom.spec.model import Mla, ModelSpec, Moe, Rope, Scoring, TopkMethod, Yarn
from fathom.spec.quantization import parse_dtype, parse_quantization

ARCHITECTURES = (V2, V3)

# One row of the parameter table each: a damaged count must not take memory and time without end.
_MAX_LAYERS, _MAX_EXPERTS = 1024, 8192

_MODEL_TYPES = {"deepseek_v2": V2, "deepseek_v3": V3}


def parse_config(config: Mapping[str, object]) -> ModelSpec:
    """The model that a config.json describes.

    Raises: CheckpointError for an architecture that is not supported and for a field whose value
    is wrong or asks for something that is not implemented.
    """
    architecture = _architecture(config)
    fields = ConfigFields(config, CLASS_DEFAULTS[architecture])
    _refuse_unsupported(fields)
    num_layers = fields.count("num_hidden_layers", maximum=_MAX_LAYERS)
    moe = _moe(fields, architecture)
    dense_layers = _dense_layers(fields, num_layers, moe)
    dtype = parse_dtype(fields)
    stored = parse_quantization(fields, dtype)
    vocab_size = fields.count("vocab_size")
    return ModelSpec(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=fields.count("hidden_size"),
        num_layers=num_layers,
        dense_layers=dense_layers,
        dense_intermediate_size=fields.count("intermediate_size"),
        mla=_mla(fields),
        moe=moe,
        rope=_rope(fields),
        rms_norm_eps=fields.number("rms_norm_eps", above=0.0),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        max_position=fields.count("max_position_embeddings"),
        num_mtp_layers=fields.optional_count("num_nextn_predict_layers", 0, _MAX_LAYERS) or 0,
        weight_format=stored.format,
        dtype=dtype,
        bos_token_id=_token_id(fields, "bos_token_id", fields.get("bos_token_id"), vocab_size),
        eos_token_ids=_eos_token_ids(fields, vocab_size),
        packing=stored.packing,
        kept=stored.kept,
    )


def _architecture(config: Mapping[str, object]) -> str:
    if not isinstance(config, Mapping):
        raise CheckpointError(
            "config.json", found=type(config).__name__, wanted="a JSON object with a model's fields"
        )
    named = config.get("architectures")
    if isinstance(named, list) and len(named) == 1 and named[0] in ARCHITECTURES:
        return str(named[0])
    model_type = config.get("model_type")
    if named is None and isinstance(model_type, str) and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type]
    found = named if named is not None else model_type
    text = found[0] if isinstance(found, list) and len(found) == 1 else found
    near = get_close_matches(str(text), ARCHITECTURES, 1, 0.5)
    raise CheckpointError(
        "config.json: architectures",
        found=repr(text),
        wanted=f"one of {', '.join(ARCHITECTURES)}" + (f" (nearest: {near[0]})" if near else ""),
        fix="serve a checkpoint of a supported architecture",
    )


def _refuse_unsupported(fields: ConfigFields) -> None:
    """Fields that would change the computation in ways that no DeepSeek checkpoint uses."""
    fields.refuse("hidden_act", ("silu",), "other activations are not implemented")
    fields.refuse("attention_bias", (False, None), "biases in attention are not implemented")
    fields.refuse("mlp_bias", (False, None), "biases in the MLP are not implemented")
    kv_heads = fields.optional_count("num_key_value_heads")
    if kv_heads not in (None, fields.count("num_attention_heads")):
        raise fields.fail(
            "num_key_value_heads",
            f"{fields.count('num_attention_heads')} (num_attention_heads): every head of latent "
            "attention has keys of its own",
        )


def _mla(fields: ConfigFields) -> Mla:
    rope_dim = fields.count("qk_rope_head_dim", 2)
    if rope_dim % 2:
        raise fields.fail("qk_rope_head_dim", "an even number: rotations work on pairs")
    return Mla(
        num_heads=fields.count("num_attention_heads"),
        q_lora_rank=fields.optional_count("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"),
        nope_dim=fields.count("qk_nope_head_dim"),
        rope_dim=rope_dim,
        v_dim=fields.count("v_head_dim"),
    )


def _moe(fields: ConfigFields, architecture: str) -> Moe | None:
    num_experts = fields.optional_count("n_routed_experts", 0, _MAX_EXPERTS) or 0
    if num_experts == 0:
        return None
    scoring = cast(Scoring, fields.choice("scoring_func", ("softmax", "sigmoid")))
    method = cast(
        TopkMethod,
        fields.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc")),
    )
    per_token = fields.count("num_experts_per_tok")
    if per_token > num_experts:
        raise fields.fail("num_experts_per_tok", f"at most n_routed_experts, {num_experts}")
    num_groups, groups_per_token = _groups(fields, method, num_experts, per_token)
    normalize = fields.flag("norm_topk_prob")
    scale = fields.number("routed_scaling_factor")
    if architecture == V2 and normalize and per_token > 1:
        # DeepSeek-V2's gate scales the weights only where it does not normalise them.
        scale = 1.0
    return Moe(
        num_experts=num_experts,
        num_shared_experts=fields.optional_count("n_shared_experts", 0) or 0,
        experts_per_token=per_token,
        num_groups=num_groups,
        groups_per_token=groups_per_token,
        intermediate_size=fields.count("moe_intermediate_size"),
        scoring=scoring,
        method=method,
        normalize_weights=normalize,
        routed_scale=scale,
    )


def _groups(
    fields: ConfigFields, method: TopkMethod, num_experts: int, per_token: int
) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may use; one of one where all may be used."""
    if method == "greedy":
        return 1, 1
    num_groups = fields.optional_count("n_group") or 1
    if num_experts % num_groups:
        raise fields.fail("n_group", f"a divisor of n_routed_experts, {num_experts}")
    size = num_experts // num_groups
    if method == "noaux_tc" and num_groups > 1 and size < 2:
        # A group's score is the sum of its two best experts (V3's gate).
        raise fields.fail("n_group", f"at most {num_experts // 2}: groups of two experts or more")
    chosen = fields.optional_count("topk_group") or 1
    if chosen > num_groups:
        raise fields.fail("topk_group", f"at most n_group, {num_groups}")
    if chosen * size < per_token:
        raise fields.fail(
            "topk_group", f"at least {-(-per_token // size)}: num_experts_per_tok is {per_token}"
        )
    return num_groups, chosen


def _dense_layers(fields: ConfigFields, num_layers: int, moe: Moe | None) -> frozenset[int]:
    if moe is None:
        return frozenset(range(num_layers))
    first = fields.optional_count("first_k_dense_replace", 0) or 0
    every = fields.count("moe_layer_freq")
    return frozenset(i for i in range(num_layers) if i < first or i % every)


def _rope(fields: ConfigFields) -> Rope:
    """Positions, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    name = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    theta_default = {"rope_theta": fields.get("rope_theta"), **YARN_DEFAULTS}
    section = fields.section(name, theta_default)
    interleaved = fields.get("rope_interleave") is None or fields.flag("rope_interleave")
    if section is None:
        return Rope(fields.number("rope_theta", above=1.0), interleaved, None)
    theta = section.number("rope_theta", above=1.0)
    key = "rope_type" if section.get("rope_type") is not None else "type"
    if section.get(key) is None:
        raise section.fail("rope_type", "default or yarn")
    if section.choice(key, ("default", "yarn")) == "default":
        return Rope(theta, interleaved, None)
    section.refuse("attention_factor", (None,), "DeepSeek's mscale says the same")
    section.refuse("truncate", (True,), "a correction range without rounding is not implemented")
    section.refuse("partial_rotary_factor", (None, 1.0, 1), "qk_rope_head_dim rotates whole")
    original = section.optional_count("original_max_position_embeddings")
    yarn = Yarn(
        factor=section.number("factor", above=0.0),
        original_max_position=original or fields.count("max_position_embeddings"),
        beta_fast=section.number("beta_fast", above=0.0),
        beta_slow=section.number("beta_slow", above=0.0),
        mscale=section.number("mscale"),
        mscale_all_dim=section.number("mscale_all_dim"),
    )
    if yarn.factor < 1:
        raise section.fail("factor", "1 or more")
    if yarn.beta_fast < yarn.beta_slow:
        raise section.fail("beta_fast", f"at least beta_slow, {yarn.beta_slow:g}")
    return Rope(theta, interleaved, yarn)


def _token_id(fields: ConfigFields, name: str, value: object, vocab_size: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise fields.fail(name, f"a token id from 0 to {vocab_size - 1}", found=value)
    return value


def _eos_token_ids(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    listed = value if isinstance(value, list | tuple) else [value]
    ids = [_token_id(fields, "eos_token_id", one, vocab_size) for one in listed]
    return tuple(dict.fromkeys(one for one in ids if one is not None))
