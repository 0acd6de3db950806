"""Op cases of the shapes of real models, for benchmarks alone: too large to be checked by loops.

The shapes are those of one rank's step: v3_mini and V2-Lite whole, V3 as one rank of eight holds it
(heads, inner widths and vocabulary cut by eight, formats as published and int4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fathom.ops.cases import (
    V2_LITE_MOE,
    V3_MLA,
    V3_MOE,
    AttentionShape,
    Case,
    WeightName,
)
from fathom.spec.model import Mla, Moe

ROWS = (1, 8, 32, 512)
DECODE_BATCHES = (1, 8, 32)
CONTEXTS = (128, 1024, 8192)
PROMPTS = (512, 2048)
PAGE_SIZE = 64
INT4_GROUP = 128


@dataclass(frozen=True, slots=True)
class RankShape:
    """One rank's part of a model. `dense` and `inner`: widths of MLPs and of an expert; `shared`:
    of all shared experts together; `vocab`: rows of the vocabulary."""

    hidden: int
    mla: Mla
    moe: Moe
    dense: int
    inner: int
    shared: int
    vocab: int
    full_vocab: int
    weights: tuple[WeightName, ...]


V3_MINI_MLA = replace(V3_MLA, num_heads=16, q_lora_rank=384)
V3_MINI_MOE = replace(
    V3_MOE, num_experts=64, num_groups=1, groups_per_token=1, intermediate_size=512
)
V2_LITE_MLA = replace(V3_MLA, num_heads=16, q_lora_rank=None)
SHAPES: Mapping[str, RankShape] = {
    "v3_mini": RankShape(
        hidden=1024,
        mla=V3_MINI_MLA,
        moe=V3_MINI_MOE,
        dense=2816,
        inner=512,
        shared=512,
        vocab=32_000,
        full_vocab=32_000,
        weights=("bfloat16", "fp8_block", "int8", "int4"),
    ),
    "v2_lite": RankShape(
        hidden=2048,
        mla=V2_LITE_MLA,
        moe=V2_LITE_MOE,
        dense=10_944,
        inner=1408,
        shared=2816,
        vocab=102_400,
        full_vocab=102_400,
        weights=("bfloat16", "int8"),
    ),
    "v3_rank": RankShape(
        hidden=7168,
        mla=replace(V3_MLA, num_heads=16),
        moe=V3_MOE,
        dense=2304,
        inner=256,
        shared=256,
        vocab=16_160,
        full_vocab=129_280,
        weights=("fp8_block", "int4"),
    ),
}


def speed_cases() -> tuple[Case, ...]:
    """All that is timed and not tested. Activations are bfloat16."""
    return tuple(
        case
        for model, shape in SHAPES.items()
        for case in (
            *_matrix_cases(model, shape),
            *_attention_cases(model, shape),
            *_row_cases(model, shape),
            *_logit_cases(model, shape),
        )
    )


def _matrix_cases(model: str, shape: RankShape) -> Iterator[Case]:
    for weights in shape.weights:
        grouped = {"group": INT4_GROUP} if weights == "int4" else {}
        for name, (width, inputs) in _linears(shape).items():
            # Logits are wanted of the last tokens only: never of a whole chunk of a prompt.
            for rows in ROWS[:-1] if name == "head" else ROWS:
                sizes = {"T": rows, "N": width, "K": inputs, **grouped}
                yield Case("linear", f"{model}_{name}_t{rows}", sizes, "bfloat16", weights)
        for rows in ROWS:
            sizes = {"T": rows, "D": shape.hidden, "I": shape.dense, **grouped}
            yield Case("mlp", f"{model}_t{rows}", sizes, "bfloat16", weights)
            sizes = {**sizes, "I": shape.inner, "shared": shape.shared}
            yield Case("experts", f"{model}_t{rows}", sizes, "bfloat16", weights, moe=shape.moe)


def _linears(shape: RankShape) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of attention's projections, joined where they share inputs, and of the
    head."""
    mla, hidden = shape.mla, shape.hidden
    queries, latents = mla.num_heads * mla.qk_dim, mla.latent_dim
    linears = {"qkv": (queries + latents, hidden)}
    if mla.q_lora_rank is not None:
        linears = {
            "qkv_a": (mla.q_lora_rank + latents, hidden),
            "q_b": (queries, mla.q_lora_rank),
        }
    linears["o"] = (hidden, mla.num_heads * mla.v_dim)
    linears["head"] = (shape.vocab, hidden)
    return linears


def _attention_cases(model: str, shape: RankShape) -> Iterator[Case]:
    heads = {"H": shape.mla.num_heads}
    for batch in DECODE_BATCHES:
        for length in CONTEXTS:
            step = AttentionShape(shape.mla, (1,) * batch, (length,) * batch, PAGE_SIZE)
            name = f"{model}_decode_b{batch}_c{length}"
            yield Case("mla_attend", name, heads, "bfloat16", "bfloat16", attention=step)
    for length in PROMPTS:
        step = AttentionShape(shape.mla, (length,), (length,), PAGE_SIZE)
        name = f"{model}_prefill_{length}"
        yield Case("mla_attend", name, heads, "bfloat16", "bfloat16", attention=step)
    for rows in ROWS:
        step = (
            AttentionShape(shape.mla, (1,) * rows, (1024,) * rows, PAGE_SIZE)
            if rows <= DECODE_BATCHES[-1]
            else AttentionShape(shape.mla, (rows,), (rows,), PAGE_SIZE)
        )
        name = f"{model}_t{rows}"
        yield Case("mla_write", name, {}, "bfloat16", "bfloat16", attention=step)


def _row_cases(model: str, shape: RankShape) -> Iterator[Case]:
    for rows in ROWS:
        sizes, name = {"T": rows, "D": shape.hidden}, f"{model}_t{rows}"
        yield Case("route", name, sizes, "bfloat16", "bfloat16", moe=shape.moe)
        added = {"residual": True}
        yield Case("rms_norm", name, sizes, "bfloat16", "bfloat16", options=added)
        yield Case("embed", name, {**sizes, "V": shape.vocab}, "bfloat16", "bfloat16")


def _logit_cases(model: str, shape: RankShape) -> Iterator[Case]:
    for rows in ROWS[:-1]:
        sizes = {"R": rows, "V": shape.full_vocab}
        yield Case("largest", f"{model}_r{rows}", sizes)
        yield Case("sample", f"{model}_r{rows}", sizes)
        yield Case("sample", f"{model}_greedy_r{rows}", sizes, options={"greedy": True})
        yield Case("token_logprobs", f"{model}_r{rows}", {**sizes, "top": 5})
