"""What a call of an op must move and compute at least: the two sides of its roofline.

Pure formulas of shapes and formats, for a backend that reads every weight once and keeps what is
between its steps in the cache. They know no machine; whoever has one divides by its rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fathom.ops.cases import AttentionShape, Case, OpName
from fathom.spec.formats import BFLOAT16, FLOAT32, FP8_BLOCK, INT8_CHANNEL, Format, int4_group
from fathom.spec.model import Mla
from fathom.spec.work import (
    causal_pairs,
    distinct_experts,
    expert_chances,
    gated_bytes,
    gated_operations,
)

Operand = Literal["float32", "bfloat16", "int8"]
_INT64 = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call.

    `weight_bytes`: weights and cached latents, which a step finds in memory and not in the cache;
    `activation_bytes`: what goes in and comes out, which the step before may have left in it;
    `operations`: two for a multiply-add of a product of matrices, none for anything else;
    `operand`: of which numbers.
    """

    weight_bytes: float
    activation_bytes: float
    operations: float = 0.0
    operand: Operand = "float32"

    @property
    def num_bytes(self) -> float:
        """All of them."""
        return self.weight_bytes + self.activation_bytes


def cost(case: Case, *, distinct_experts: float | None = None) -> Cost:
    """Of one call of `case`; `distinct_experts`: of its tokens together, for `experts`, where it is
    known; else what even routing gives on average."""
    if case.op == "experts":
        return _experts(case, distinct_experts)
    return _COSTS[case.op](case)


def format_of(case: Case) -> Format:
    """How the case's weights are held."""
    if case.weights == "int4":
        return int4_group(case.group)
    formats = {
        "float32": FLOAT32,
        "bfloat16": BFLOAT16,
        "fp8_block": FP8_BLOCK,
        "int8": INT8_CHANNEL,
    }
    return formats[case.weights]


def expected_experts(num_experts: int, per_token: int, tokens: int) -> float:
    """Distinct experts of `tokens` tokens that choose each set of `per_token` alike: an expert is
    left out by one token with probability 1 - k / E."""
    return distinct_experts(expert_chances(num_experts, per_token, 0.0), tokens)


def visible_keys(shape: AttentionShape) -> int:
    """Pairs of a query and a key that it sees: a query at position p sees p + 1."""
    return sum(map(causal_pairs, shape.query_lens, shape.context_lens))


def absorbed_operations(mla: Mla, heads: float, positions: float, pairs: float) -> float:
    """Of attention over latents: queries go into the latents' space, and what heads find comes out
    of it. `pairs`: a query and a key that it sees.

    Source: DeepSeek-V2 report (arXiv 2405.04434), section 2.1.2.
    """
    up = heads * (mla.nope_dim + mla.v_dim) * mla.kv_lora_rank
    return 2 * positions * up + 2 * heads * pairs * (mla.latent_dim + mla.kv_lora_rank)


def _element(case: Case) -> int:
    """Bytes of an activation."""
    return 4 if case.dtype == "float32" else 2


def _operand(case: Case) -> Operand:
    if case.weights in ("int8", "int4"):
        return "int8"
    return case.dtype


def _linear(case: Case) -> Cost:
    rows, width, inputs = (case.sizes[letter] for letter in "TNK")
    moved = rows * (width + inputs)
    if case.has("residual"):
        moved += 2 * rows * inputs  # read and written
    return Cost(
        format_of(case).num_bytes((width, inputs)),
        moved * _element(case),
        2 * rows * width * inputs,
        _operand(case),
    )


def _mlp(case: Case) -> Cost:
    rows, width = case.sizes["T"], case.sizes["D"]
    weights, operations = _gated(case, case.sizes["I"])
    moved = 2 * rows * width * _element(case)
    return Cost(weights, moved, rows * operations, _operand(case))


def _gated(case: Case, inner: int) -> tuple[int, float]:
    """Bytes of one gated MLP's weights, and its operations for a token."""
    width = case.sizes["D"]
    return gated_bytes(format_of(case), width, inner), gated_operations(width, inner)


def _experts(case: Case, distinct: float | None) -> Cost:
    assert case.moe is not None
    rows, width, per_token = case.sizes["T"], case.sizes["D"], case.moe.experts_per_token
    if distinct is None:
        distinct = expected_experts(case.moe.num_experts, per_token, rows)
    weights, operations = _gated(case, case.sizes["I"])
    shared_weights, shared_operations = 0, 0.0
    if "shared" in case.sizes:
        shared_weights, shared_operations = _gated(case, case.sizes["shared"])
    choices = rows * per_token * (_INT64 + 4)
    return Cost(
        distinct * weights + shared_weights,
        2 * rows * width * _element(case) + choices,
        rows * (per_token * operations + shared_operations),
        _operand(case),
    )


def _route(case: Case) -> Cost:
    assert case.moe is not None
    rows, width, experts = case.sizes["T"], case.sizes["D"], case.moe.num_experts
    bias = 4 * experts if case.moe.method == "noaux_tc" else 0
    choices = rows * case.moe.experts_per_token * (_INT64 + 4)
    return Cost(
        experts * width * _element(case) + bias,
        rows * width * _element(case) + choices,
        2 * rows * width * experts,
        "float32",
    )


def _mla_write(case: Case) -> Cost:
    assert case.attention is not None
    tokens, width = sum(case.attention.query_lens), case.attention.mla.latent_dim
    cells = tokens * width * _element(case)
    angles = tokens * case.attention.mla.rope_dim * 4
    norm = case.attention.mla.kv_lora_rank * _element(case)
    return Cost(norm + cells, cells + angles + tokens * _INT64)


def _mla_attend(case: Case) -> Cost:
    """Absorbed: queries go into the latents' space, and what heads find comes out of it."""
    shape, heads = case.attention, case.sizes["H"]
    assert shape is not None
    mla, tokens = shape.mla, sum(shape.query_lens)
    up = heads * (mla.nope_dim + mla.v_dim) * mla.kv_lora_rank
    cells = sum(shape.context_lens) * mla.latent_dim
    moved = tokens * heads * (mla.qk_dim + mla.v_dim) * _element(case)
    products = absorbed_operations(mla, heads, tokens, visible_keys(shape))
    weights = (up + cells) * _element(case)
    return Cost(weights, moved + tokens * mla.rope_dim * 4, products, case.dtype)


def _embed(case: Case) -> Cost:
    rows = case.sizes["T"] * case.sizes["D"] * _element(case)
    return Cost(rows, rows + case.sizes["T"] * _INT64)


def _rms_norm(case: Case) -> Cost:
    rows, width = case.sizes["T"], case.sizes["D"]
    passes = 4 if case.has("residual") else 2
    return Cost(width * _element(case), passes * rows * width * _element(case))


def _rope(case: Case) -> Cost:
    values = case.sizes["T"] * max(1, case.sizes["H"]) * case.sizes["D"]
    return Cost(0, 2 * values * _element(case) + case.sizes["T"] * case.sizes["D"] * 4)


def _silu_mul(case: Case) -> Cost:
    return Cost(0, 3 * case.sizes["T"] * case.sizes["I"] * _element(case))


def _quantize_rows(case: Case) -> Cost:
    rows, width = case.sizes["T"], case.sizes["K"]
    return Cost(0, rows * width * (_element(case) + 1) + rows * -(-width // 128) * 4)


def _logits(case: Case) -> Cost:
    """One pass over float32 logits."""
    return Cost(0, case.sizes["R"] * case.sizes["V"] * 4)


def _mask_logits(case: Case) -> Cost:
    rows, vocab = case.sizes["R"], case.sizes["V"]
    return Cost(0, rows * vocab * 8 + rows * -(-vocab // 8))


def _verify(case: Case) -> Cost:
    sequences, drafts = case.sizes["S"], case.sizes["n"]
    return Cost(0, sequences * (2 * drafts + 3) * _INT64)


_COSTS: Mapping[OpName, Callable[[Case], Cost]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "linear": _linear,
    "mlp": _mlp,
    "quantize_rows": _quantize_rows,
    "silu_mul": _silu_mul,
    "mla_write": _mla_write,
    "mla_attend": _mla_attend,
    "route": _route,
    "mask_logits": _mask_logits,
    "largest": _logits,
    "sample": _logits,
    "token_logprobs": _logits,
    "verify": _verify,
}
