"""The op case table: shapes, formats and page sizes on which every backend is checked and timed.

Small cases reach edges (odd sizes, blocks cut short, NaN); cases named `v3` have the true widths of
DeepSeek-V3 where they matter, with few heads and rows, so that a CPU can take them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fathom.spec.formats import INT4_GROUPS
from fathom.spec.model import Mla, Moe

OpName = Literal[
    "embed",
    "rms_norm",
    "rope",
    "linear",
    "mlp",
    "quantize_rows",
    "silu_mul",
    "mla_write",
    "mla_attend",
    "route",
    "experts",
    "mask_logits",
    "largest",
    "sample",
    "token_logprobs",
    "verify",
]
DtypeName = Literal["float32", "bfloat16"]
WeightName = Literal["float32", "bfloat16", "fp8_block", "int8", "int4"]

# Largest difference over largest value, by (activations, weights). With bfloat16 and FP8 weights a
# backend may round activations to FP8 rows, as DeepSeek-V3 was trained (report, section 3.3); with
# int8 and int4 ones to int8, by row or by group of columns.
TOLERANCES: Mapping[tuple[DtypeName, WeightName], float] = {
    ("float32", "float32"): 1e-5,
    ("float32", "fp8_block"): 1e-5,
    ("bfloat16", "bfloat16"): 1e-2,
    ("bfloat16", "fp8_block"): 4e-2,
    ("bfloat16", "int8"): 3e-2,
    ("bfloat16", "int4"): 3e-2,
}
# Rounding to e4m3: one step of a backend that divides against one that multiplies by the inverse.
FP8_STEP = 1 / 16


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sequences of one step, and the heads of one rank."""

    mla: Mla
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    page_size: int


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one op.

    `sizes` by the letters of `api.py`; `group`: columns of a group of int4. `is_poisoned`:
    activations hold NaN and inf, which must come out where they must and nowhere else. `options`
    are the op's own flags.
    """

    op: OpName
    name: str
    sizes: Mapping[str, int]
    dtype: DtypeName = "float32"
    weights: WeightName = "float32"
    attention: AttentionShape | None = None
    moe: Moe | None = None
    is_poisoned: bool = False
    options: Mapping[str, bool] | None = None

    @property
    def id(self) -> str:
        """A unique name for reports."""
        poison = "-poisoned" if self.is_poisoned else ""
        return f"{self.op}-{self.name}-{self.dtype}-{self.weights}{poison}"

    @property
    def group(self) -> int:
        """Columns that share a scale and a zero point, with int4 weights."""
        return self.sizes.get("group", INT4_GROUPS[0])

    @property
    def tolerance(self) -> float:
        """What a backend may differ from float64 by, relative to the largest value."""
        if self.op == "quantize_rows":
            return FP8_STEP
        return TOLERANCES[self.dtype, self.weights]

    def has(self, option: str) -> bool:
        """Whether a flag of the op is set."""
        return bool(self.options and self.options.get(option))


TINY_MLA = Mla(num_heads=3, q_lora_rank=None, kv_lora_rank=24, nope_dim=10, rope_dim=6, v_dim=14)
V3_MLA = Mla(num_heads=2, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
V3_MOE = Moe(
    num_experts=256,
    num_shared_experts=1,
    experts_per_token=8,
    num_groups=8,
    groups_per_token=4,
    intermediate_size=2048,
    scoring="sigmoid",
    method="noaux_tc",
    normalize_weights=True,
    routed_scale=2.5,
)
V2_MOE = replace(
    V3_MOE,
    num_experts=160,
    experts_per_token=6,
    groups_per_token=3,
    intermediate_size=1536,
    scoring="softmax",
    method="group_limited_greedy",
    normalize_weights=False,
    routed_scale=16.0,
)
V2_LITE_MOE = replace(
    V2_MOE,
    num_experts=64,
    num_groups=1,
    groups_per_token=1,
    intermediate_size=1408,
    method="greedy",
    routed_scale=1.0,
)
TINY_MOE = replace(V3_MOE, num_experts=6, experts_per_token=3, num_groups=3, groups_per_token=2)


def all_cases() -> tuple[Case, ...]:
    """The whole table of correctness; `speed_cases.py` has what is only timed."""
    return (*_row_cases(), *_linear_cases(), *_attention_cases(), *_moe_cases(), *_logit_cases())


def cases_of(op: OpName) -> tuple[Case, ...]:
    """The cases of one op."""
    return tuple(case for case in all_cases() if case.op == op)


def _row_cases() -> Iterator[Case]:
    """Ops that treat each row, or each value, by itself."""
    for dtype in _dtypes():
        yield Case("embed", "all", {"T": 7, "V": 11, "D": 5}, dtype, dtype)
        yield Case("embed", "part", {"T": 9, "V": 6, "D": 4, "first_id": 5}, dtype, dtype)
        for name, width in (("odd", 13), ("v3", 7168)):
            yield Case("rms_norm", name, {"T": 4, "D": width}, dtype, dtype)
            fused = {"residual": True}
            yield Case(
                "rms_norm", f"{name}_residual", {"T": 4, "D": width}, dtype, dtype, options=fused
            )
            yield Case("silu_mul", name, {"T": 4, "I": width}, dtype, dtype)
        for name, heads in (("keys", 0), ("queries", 3)):
            sizes = {"T": 5, "H": heads, "D": 64}
            yield Case("rope", name, sizes, dtype, dtype)
            yield Case("rope", f"{name}_pairs", sizes, dtype, dtype, options={"interleaved": True})
        yield Case("quantize_rows", "edge", {"T": 3, "K": 200}, dtype, dtype)
        yield Case("quantize_rows", "v3", {"T": 3, "K": 7168}, dtype, dtype)
    yield Case("rms_norm", "odd", {"T": 4, "D": 13}, is_poisoned=True)
    yield Case("silu_mul", "odd", {"T": 4, "I": 13}, is_poisoned=True)
    yield Case("rope", "queries_pairs", {"T": 5, "H": 3, "D": 8}, is_poisoned=True)


def _linear_cases() -> Iterator[Case]:
    for dtype, weights in TOLERANCES:
        for name, (rows, width, inputs) in {
            "one": (1, 96, 64),
            "edge_blocks": (5, 200, 300),
            "v3_kv_a": (3, 576, 7168),
        }.items():
            sizes = _grouped({"T": rows, "N": width, "K": inputs}, weights, "K")
            yield Case("linear", name, sizes, dtype, weights)
            for option in ({"norm": True}, {"norm": True, "residual": True}):
                full = f"{name}_{'_'.join(option)}"
                yield Case("linear", full, sizes, dtype, weights, options=option)
        for name, (rows, width, inner) in {
            "one": (1, 64, 32),
            "edge_blocks": (7, 200, 128),
        }.items():
            sizes = _grouped({"T": rows, "D": width, "I": inner}, weights, "D", "I")
            yield Case("mlp", name, sizes, dtype, weights)
    yield Case("linear", "odd", {"T": 4, "N": 9, "K": 7}, is_poisoned=True)


def _attention_cases() -> Iterator[Case]:
    """Decode, prefill, chunks, and all at once; contexts that end on and around page borders."""
    mixed = ((1, 1, 40, 3, 17), (1, 65, 40, 64, 130))
    steps = {
        "decode": ((1, 1, 1, 1), (1, 16, 63, 129)),
        "drafts": ((3, 2, 3), (3, 64, 66)),
        "prefill": ((70, 5), (70, 5)),
        "chunk": ((33,), (100,)),
        "mixed": mixed,
    }
    for page_size in (1, 16, 64):
        for name, (queries, contexts) in steps.items():
            shape = AttentionShape(TINY_MLA, queries, contexts, page_size)
            for dtype in _dtypes():
                full = f"{name}_page{page_size}"
                yield Case("mla_attend", full, {"H": 3}, dtype, dtype, attention=shape)
        shape = AttentionShape(TINY_MLA, *mixed, page_size)
        for dtype in _dtypes():
            yield Case("mla_write", f"page{page_size}", {}, dtype, dtype, attention=shape)
    for dtype in _dtypes():
        shape = AttentionShape(TINY_MLA, (1, 3, 40), (1500, 700, 1100), 16)
        yield Case("mla_attend", "long", {"H": 3}, dtype, dtype, attention=shape)
        shape = AttentionShape(V3_MLA, (1, 2, 20), (70, 130, 84), 64)
        yield Case("mla_attend", "v3", {"H": 2}, dtype, dtype, attention=shape)


def _moe_cases() -> Iterator[Case]:
    for name, moe in {"tiny": TINY_MOE, "v3": V3_MOE, "v2": V2_MOE, "v2_lite": V2_LITE_MOE}.items():
        sizes = {"T": 6, "D": 48}
        yield Case("route", name, sizes, moe=moe)
        yield Case("route", f"{name}_ties", sizes, moe=moe, options={"ties": True})
    below_zero = {"negative_bias": True}
    yield Case("route", "v3_below_zero", {"T": 6, "D": 48}, moe=V3_MOE, options=below_zero)
    yield Case("route", "v3", {"T": 6, "D": 48}, "bfloat16", "bfloat16", moe=V3_MOE)
    for dtype, weights in TOLERANCES:
        for name, (moe, tokens, width, inner) in {
            "tiny": (TINY_MOE, 5, 40, 24),
            "edge_blocks": (TINY_MOE, 9, 200, 136),
            "v3": (V3_MOE, 4, 256, 128),
        }.items():
            grouped = _grouped({"T": tokens, "D": width, "I": inner}, weights, "D", "I")
            yield Case("experts", name, grouped, dtype, weights, moe=moe)
            shared = {**grouped, "shared": grouped["I"]}
            yield Case("experts", f"{name}_shared", shared, dtype, weights, moe=moe)
    yield Case("experts", "one_token", {"T": 1, "D": 40, "I": 24}, moe=TINY_MOE)
    yield Case("experts", "tiny", {"T": 5, "D": 40, "I": 24}, moe=TINY_MOE, is_poisoned=True)


def _logit_cases() -> Iterator[Case]:
    for name, rows, vocab in (("small", 12, 37), ("v3", 3, 129_280)):
        sizes = {"R": rows, "V": vocab}
        yield Case("mask_logits", name, sizes)
        yield Case("largest", name, sizes)
        yield Case("sample", name, sizes)
        yield Case("sample", f"{name}_ties", sizes, options={"ties": True})
        yield Case("token_logprobs", name, {**sizes, "top": 5}, options={"ties": True})
    yield Case("sample", "greedy", {"R": 4, "V": 19}, options={"greedy": True, "ties": True})
    yield Case("token_logprobs", "no_top", {"R": 4, "V": 19, "top": 0})
    yield Case("verify", "drafts", {"S": 9, "n": 3})
    yield Case("verify", "no_drafts", {"S": 4, "n": 0})


def _grouped(sizes: Mapping[str, int], weights: WeightName, *columns: str) -> Mapping[str, int]:
    """Columns rounded up to the widest groups of int4 that they have room for, where it is int4."""
    if weights != "int4":
        return sizes
    group = max(size for size in INT4_GROUPS if size <= max(32, min(sizes[k] for k in columns)))
    return {**sizes, "group": group, **{k: -(-sizes[k] // group) * group for k in columns}}


def _dtypes() -> tuple[DtypeName, ...]:
    return ("float32", "bfloat16")
