"""Dense models with grouped-query attention: Llama and Qwen2, as DeepSeek's distilled models are.

They are described, so that a plan can count their bytes and their work. The engine does not run
them, and so what only a forward pass needs (rotations, norms' epsilon) is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fathom.spec.fields import ConfigFields
from fathom.spec.formats import Format
from fathom.spec.parallel import ShardRule
from fathom.spec.params import ParamSpec, as_stored
from fathom.spec.quantization import parse_dtype, parse_quantization
from fathom.spec.stored import Packing

LLAMA, QWEN2 = "LlamaForCausalLM", "Qwen2ForCausalLM"
MODEL_TYPES = {"llama": LLAMA, "qwen2": QWEN2}

_MAX_LAYERS = 1024
# transformers' config classes; Qwen2 has biases on queries, keys and values, and no key for them.
_DEFAULTS: dict[str, object] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}


@dataclass(frozen=True, slots=True)
class Gqa:
    """Grouped-query attention, arXiv 2305.13245: `num_heads` share `num_kv_heads`."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qkv_bias: bool
    has_o_bias: bool


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One dense model. Fields that ModelSpec has too mean the same."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    gqa: Gqa
    has_mlp_bias: bool
    tie_embeddings: bool
    max_position: int
    weight_format: Format
    dtype: Format
    packing: Packing | None = None
    kept: tuple[str, ...] = ()


def parse_dense(config: Mapping[str, object], architecture: str) -> DenseSpec:
    """The dense model that a config.json describes.

    Raises: CheckpointError for a field whose value is wrong or changes what must be counted.
    """
    fields = ConfigFields(config, _DEFAULTS)
    fields.refuse("hidden_act", ("silu",), "other activations are not known")
    fields.refuse("use_sliding_window", (False, None), "windows of attention are not counted")
    heads = fields.count("num_attention_heads")
    kv_heads = fields.optional_count("num_key_value_heads") or heads
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    hidden = fields.count("hidden_size")
    head_dim = fields.optional_count("head_dim")
    if head_dim is None and hidden % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    is_qwen, has_bias = architecture == QWEN2, fields.flag("attention_bias")
    dtype = parse_dtype(fields)
    stored = parse_quantization(fields, dtype)
    return DenseSpec(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.count("num_hidden_layers", maximum=_MAX_LAYERS),
        intermediate_size=fields.count("intermediate_size"),
        gqa=Gqa(heads, kv_heads, head_dim or hidden // heads, is_qwen or has_bias, has_bias),
        has_mlp_bias=fields.flag("mlp_bias"),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        max_position=fields.count("max_position_embeddings"),
        weight_format=stored.format,
        dtype=dtype,
        packing=stored.packing,
        kept=stored.kept,
    )


def dense_table(spec: DenseSpec) -> tuple[ParamSpec, ...]:
    """One row for each tensor of the checkpoint, cut as in `spec/deepseek_params.py`; keys and
    values by their heads, which ranks beyond their number hold again."""
    vocabulary = (spec.vocab_size, spec.hidden_size)
    name = "model.embed_tokens.weight"
    rows = [ParamSpec(name, vocabulary, spec.dtype, ShardRule.ROWS, None, "embed")]
    for layer in range(spec.num_layers):
        rows.extend(_layer(spec, layer))
    rows.append(_norm(spec, "model.norm", None, "norm"))
    if not spec.tie_embeddings:
        name = "lm_head.weight"
        rows.append(ParamSpec(name, vocabulary, spec.dtype, ShardRule.ROWS, None, "head"))
    return tuple(as_stored(rows, spec.weight_format, spec.dtype, spec.packing, spec.kept))


def _norm(spec: DenseSpec, module: str, layer: int | None, role: str) -> ParamSpec:
    shape = (spec.hidden_size,)
    return ParamSpec(f"{module}.weight", shape, spec.dtype, ShardRule.REPLICATE, layer, role)


def _layer(spec: DenseSpec, layer: int) -> Iterator[ParamSpec]:
    prefix, gqa, hidden = f"model.layers.{layer}", spec.gqa, spec.hidden_size
    queries, keys = gqa.num_heads * gqa.head_dim, gqa.num_kv_heads * gqa.head_dim
    inner, rows, columns = spec.intermediate_size, ShardRule.ROWS, ShardRule.COLUMNS
    yield _norm(spec, f"{prefix}.input_layernorm", layer, "input_norm")
    for module, shape, rule, role, has_bias in (
        ("self_attn.q_proj", (queries, hidden), rows, "gqa_q", gqa.has_qkv_bias),
        ("self_attn.k_proj", (keys, hidden), rows, "gqa_k", gqa.has_qkv_bias),
        ("self_attn.v_proj", (keys, hidden), rows, "gqa_v", gqa.has_qkv_bias),
        ("self_attn.o_proj", (hidden, queries), columns, "gqa_o", gqa.has_o_bias),
        ("mlp.gate_proj", (inner, hidden), rows, "dense_gate", spec.has_mlp_bias),
        ("mlp.up_proj", (inner, hidden), rows, "dense_up", spec.has_mlp_bias),
        ("mlp.down_proj", (hidden, inner), columns, "dense_down", spec.has_mlp_bias),
    ):
        name = f"{prefix}.{module}"
        parts = gqa.num_kv_heads if role in ("gqa_k", "gqa_v") else None
        yield ParamSpec(
            f"{name}.weight", shape, spec.weight_format, rule, layer, role, max_parts=parts
        )
        if has_bias:
            # The sum of the columns' parts has its bias once, on every rank.
            bias_rule = rows if rule is rows else ShardRule.REPLICATE
            role += "_bias"
            yield ParamSpec(
                f"{name}.bias", shape[:1], spec.dtype, bias_rule, layer, role, max_parts=parts
            )
    yield _norm(spec, f"{prefix}.post_attention_layernorm", layer, "mlp_norm")
