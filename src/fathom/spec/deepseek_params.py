"""The parameter table of DeepSeek-V2 and V3: every tensor that their checkpoints store.

Tensor parallelism (Megatron's scheme, arXiv 1909.08053): the matrices that make heads or
intermediate values are cut by rows, the ones that consume them by columns, so that one all-reduce
follows each; embedding and head are cut by vocabulary. The rest is small and held by every rank.
"""

from __future__ import annotations

from collections.abc import Iterator

from fathom.spec.formats import FLOAT32
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import ShardRule
from fathom.spec.params import CORRECTION_BIAS, ParamSpec, as_stored

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def parameter_table(spec: ModelSpec, *, is_brief: bool = False) -> tuple[ParamSpec, ...]:
    """One row for each tensor of the checkpoint, in the order of the computation. `is_brief`: the
    first expert stands for all of its layer, which are 256 in V3."""
    experts = range(1 if is_brief else spec.moe.num_experts if spec.moe else 0)
    vocabulary = (spec.vocab_size, spec.hidden_size)
    rows = [ParamSpec(EMBEDDING, vocabulary, spec.dtype, ShardRule.ROWS, None, "embed")]
    for layer in range(spec.num_layers):
        rows.extend(_layer(spec, layer, experts))
    for layer in range(spec.num_layers, spec.num_layers + spec.num_mtp_layers):
        rows.extend(_mtp_layer(spec, layer, experts))
    rows.append(_vector(spec, "model.norm.weight", spec.hidden_size, None, "norm"))
    if not spec.tie_embeddings:
        rows.append(ParamSpec(HEAD, vocabulary, spec.dtype, ShardRule.ROWS, None, "head"))
    return tuple(as_stored(rows, spec.weight_format, spec.dtype, spec.packing, spec.kept))


def divided_sizes(spec: ModelSpec) -> Iterator[tuple[str, int]]:
    """What tensor-parallel ranks must share evenly, by the names that config.json has for it."""
    yield "num_attention_heads", spec.mla.num_heads
    yield "vocab_size", spec.vocab_size
    if spec.dense_layers:
        yield "intermediate_size", spec.dense_intermediate_size
    if spec.moe is not None:
        yield "moe_intermediate_size", spec.moe.intermediate_size


def _vector(spec: ModelSpec, name: str, size: int, layer: int | None, role: str) -> ParamSpec:
    return ParamSpec(name, (size,), spec.dtype, ShardRule.REPLICATE, layer, role)


def _layer(spec: ModelSpec, layer: int, experts: range) -> Iterator[ParamSpec]:
    prefix = f"model.layers.{layer}"
    yield _vector(spec, f"{prefix}.input_layernorm.weight", spec.hidden_size, layer, "input_norm")
    yield from _attention(spec, f"{prefix}.self_attn", layer)
    yield _vector(
        spec, f"{prefix}.post_attention_layernorm.weight", spec.hidden_size, layer, "mlp_norm"
    )
    if spec.is_moe_layer(layer):
        yield from _experts(spec, f"{prefix}.mlp", layer, experts)
    else:
        yield from _mlp(spec, f"{prefix}.mlp", spec.dense_intermediate_size, layer, "dense")


def _attention(spec: ModelSpec, prefix: str, layer: int) -> Iterator[ParamSpec]:
    """Latent attention, DeepSeek-V2 paper (arXiv 2405.04434) section 2.1."""
    mla, weight = spec.mla, spec.weight_format
    rows, columns, whole = ShardRule.ROWS, ShardRule.COLUMNS, ShardRule.REPLICATE
    queries = mla.num_heads * mla.qk_dim
    if mla.q_lora_rank is None:
        shape = (queries, spec.hidden_size)
        yield ParamSpec(f"{prefix}.q_proj.weight", shape, weight, rows, layer, "q")
    else:
        shape = (mla.q_lora_rank, spec.hidden_size)
        yield ParamSpec(f"{prefix}.q_a_proj.weight", shape, weight, whole, layer, "q_a")
        yield _vector(spec, f"{prefix}.q_a_layernorm.weight", mla.q_lora_rank, layer, "q_a_norm")
        shape = (queries, mla.q_lora_rank)
        yield ParamSpec(f"{prefix}.q_b_proj.weight", shape, weight, rows, layer, "q_b")
    shape = (mla.latent_dim, spec.hidden_size)
    yield ParamSpec(f"{prefix}.kv_a_proj_with_mqa.weight", shape, weight, whole, layer, "kv_a")
    yield _vector(spec, f"{prefix}.kv_a_layernorm.weight", mla.kv_lora_rank, layer, "kv_a_norm")
    shape = (mla.num_heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank)
    yield ParamSpec(f"{prefix}.kv_b_proj.weight", shape, weight, rows, layer, "kv_b")
    shape = (spec.hidden_size, mla.num_heads * mla.v_dim)
    yield ParamSpec(f"{prefix}.o_proj.weight", shape, weight, columns, layer, "o")


def _mlp(
    spec: ModelSpec, prefix: str, size: int, layer: int, role: str, expert: int | None = None
) -> Iterator[ParamSpec]:
    """The three matrices of a gated MLP of width `size`."""
    wide, narrow, weight = (size, spec.hidden_size), (spec.hidden_size, size), spec.weight_format
    for part, shape, rule in (
        ("gate", wide, ShardRule.ROWS),
        ("up", wide, ShardRule.ROWS),
        ("down", narrow, ShardRule.COLUMNS),
    ):
        name = f"{prefix}.{part}_proj.weight"
        yield ParamSpec(name, shape, weight, rule, layer, f"{role}_{part}", expert)


def _experts(spec: ModelSpec, prefix: str, layer: int, experts: range) -> Iterator[ParamSpec]:
    """Router, experts and shared experts, V3 report (arXiv 2412.19437) section 2.1.2."""
    moe = spec.moe
    assert moe is not None
    whole = ShardRule.REPLICATE
    shape = (moe.num_experts, spec.hidden_size)
    yield ParamSpec(f"{prefix}.gate.weight", shape, spec.dtype, whole, layer, "router")
    if moe.method == "noaux_tc":
        name = f"{prefix}.gate.e_score_correction_bias"
        yield ParamSpec(name, (moe.num_experts,), FLOAT32, whole, layer, CORRECTION_BIAS)
    for expert in experts:
        name = f"{prefix}.experts.{expert}"
        yield from _mlp(spec, name, moe.intermediate_size, layer, "expert", expert)
    if moe.num_shared_experts:
        size = moe.num_shared_experts * moe.intermediate_size
        yield from _mlp(spec, f"{prefix}.shared_experts", size, layer, "shared")


def _mtp_layer(spec: ModelSpec, layer: int, experts: range) -> Iterator[ParamSpec]:
    """A multi-token-prediction module, V3 report section 2.2: the projection of two normed inputs,
    one layer like the others, a norm, and copies of the embedding and the head."""
    prefix = f"model.layers.{layer}"
    hidden, rows = spec.hidden_size, ShardRule.ROWS
    shape = (spec.vocab_size, hidden)
    name = f"{prefix}.embed_tokens.weight"
    yield ParamSpec(name, shape, spec.dtype, rows, layer, "mtp_embed", copy_of=EMBEDDING)
    yield _vector(spec, f"{prefix}.enorm.weight", hidden, layer, "mtp_embed_norm")
    yield _vector(spec, f"{prefix}.hnorm.weight", hidden, layer, "mtp_hidden_norm")
    name = f"{prefix}.eh_proj.weight"
    whole = ShardRule.REPLICATE
    yield ParamSpec(name, (hidden, 2 * hidden), spec.dtype, whole, layer, "mtp_project")
    yield from _layer(spec, layer, experts)
    yield _vector(spec, f"{prefix}.shared_head.norm.weight", hidden, layer, "mtp_norm")
    head = EMBEDDING if spec.tie_embeddings else HEAD
    name = f"{prefix}.shared_head.head.weight"
    yield ParamSpec(name, shape, spec.dtype, rows, layer, "mtp_head", copy_of=head)
