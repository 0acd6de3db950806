"""Inputs of the op cases, the same on every device, and how to run a backend on them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import sqrt
from typing import Any

import torch

from fathom.ops.api import Angles, Backend, Norm, Weight
from fathom.ops.batch import PagedBatch
from fathom.ops.cases import AttentionShape, Case, OpName
from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.int4_group import quantize_int4
from fathom.ops.quant.int8_channel import quantize_int8
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.sampling import Biases, LogitEdits, Penalties, SamplingRows
from fathom.spec.model import Moe

Inputs = dict[str, Any]  # an op's arguments by name
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Draw:
    """Random tensors of one case, drawn on the CPU from the case's name."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.dtype = DTYPES[case.dtype]
        seed = zlib.crc32(f"{case.op}-{case.name}".encode())
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values in float32."""
        return torch.randn(shape, generator=self._generator).to(self.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Values in [0, 1) in float64."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float64).to(self.device)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers in [0, high)."""
        return torch.randint(high, shape, generator=self._generator).to(self.device)

    def shuffled(self, size: int) -> torch.Tensor:
        """0 .. size - 1 in random order."""
        return torch.randperm(size, generator=self._generator).to(self.device)

    def activations(self, *shape: int) -> torch.Tensor:
        """Activations in the case's dtype; rows 0 and 1 hold a NaN and an inf where poisoned."""
        x = self.normal(*shape).to(self.dtype)
        if self.case.is_poisoned:
            x.view(shape[0], -1)[0, 0] = float("nan")
            x.view(shape[0], -1)[1, 1] = float("inf")
        return x

    def plain_weight(self, *shape: int) -> torch.Tensor:
        """A weight that keeps the variance of its inputs, in the case's dtype."""
        return (self.normal(*shape) / sqrt(shape[-1])).to(self.dtype)

    def weight(self, *shape: int) -> Weight:
        """As `plain_weight`, in the case's format of weights."""
        if self.case.weights == "fp8_block":
            return quantize_fp8(self.normal(*shape) / sqrt(shape[-1]))
        if self.case.weights == "int8":
            return quantize_int8(self.normal(*shape) / sqrt(shape[-1]))
        if self.case.weights == "int4":
            return quantize_int4(self.normal(*shape) / sqrt(shape[-1]), self.case.group)
        return self.plain_weight(*shape)

    def norm(self, width: int) -> Norm:
        """An RMS norm."""
        return Norm((1 + 0.1 * self.normal(width)).to(self.dtype), 1e-6)

    def angles(self, tokens: int, width: int) -> Angles:
        """Angles of interleaved pairs."""
        angles = self.normal(tokens, width // 2) * 3
        return Angles(angles.cos(), angles.sin(), True)


def make_inputs(case: Case, device: torch.device, draw: Draw | None = None) -> Inputs:
    """The arguments of one call, from `draw` where one is given."""
    return _MAKERS[case.op](draw or Draw(case, device), case)


def run_case(backend: Backend, case: Case, inputs: Inputs) -> dict[str, torch.Tensor]:
    """All that the call gives and writes, by name. Tensors that it writes are changed in `inputs`;
    quantised results come as their values and scales."""
    result = getattr(backend, case.op)(**held_inputs(backend, case, inputs))
    seen = _WRITTEN.get(case.op, ())
    outputs = {name: inputs[name] for name in seen if inputs.get(name) is not None}
    if isinstance(result, QTensor):
        outputs |= {"values": result.dequantize(torch.float32), "scale": result.scale}
    elif isinstance(result, torch.Tensor):
        outputs["out"] = result
    elif isinstance(result, tuple):
        outputs |= {f"out{index}": value for index, value in enumerate(result)}
    elif result is not None:
        outputs |= {name: getattr(result, name) for name in result.__slots__}
    return outputs


def held_inputs(backend: Backend, case: Case, inputs: Inputs) -> Inputs:
    """The inputs with weights as the backend holds them, and its plan of the batch: what the op
    takes."""
    call, dtype = dict(inputs), DTYPES[case.dtype]
    if case.op == "mla_attend":
        mla = call.pop("mla")
        call["plan"] = backend.mla_plan(call.pop("batch"), mla)
        call["kv_b"] = backend.hold_kv_b(call["kv_b"], mla, dtype=dtype)
    elif case.op == "linear":
        call["weight"] = backend.hold([call["weight"]], dtype=dtype)
    elif case.op == "experts":
        for name, is_gated in (("gate_up", True), ("down", False)):
            stack = call[name]
            parts = [[stack[expert]] for expert in range(stack.shape[0])]
            held = backend.hold_experts(parts, len(parts), dtype=dtype, is_gated=is_gated)
            call[name] = held
    if call.get("shared") is not None:
        gate_up, down = call["shared"]
        call["shared"] = (
            backend.hold([gate_up], dtype=dtype, is_gated=True),
            backend.hold([down], dtype=dtype),
        )
    elif case.op == "mlp":
        call["gate_up"] = backend.hold([call["gate_up"]], dtype=dtype, is_gated=True)
        call["down"] = backend.hold([call["down"]], dtype=dtype)
    return call


_WRITTEN: Mapping[OpName, tuple[str, ...]] = {
    "rms_norm": ("residual",),
    "linear": ("residual",),
    "mla_write": ("cache",),
    "mask_logits": ("logits",),
}


def _embed(draw: Draw, case: Case) -> Inputs:
    first_id, vocab = case.sizes.get("first_id", 0), case.sizes["V"]
    return {
        "token_ids": draw.integers(vocab + 2 * first_id, case.sizes["T"]),
        "weight": draw.normal(vocab, case.sizes["D"]).to(draw.dtype),
        "first_id": first_id,
    }


def _rms_norm(draw: Draw, case: Case) -> Inputs:
    shape = case.sizes["T"], case.sizes["D"]
    return {
        "x": draw.activations(*shape),
        "weight": (1 + 0.1 * draw.normal(shape[1])).to(draw.dtype),
        "eps": 1e-6,
        "residual": draw.normal(*shape).to(draw.dtype) if case.has("residual") else None,
    }


def _rope(draw: Draw, case: Case) -> Inputs:
    tokens, heads, width = case.sizes["T"], case.sizes["H"], case.sizes["D"]
    angles = draw.normal(tokens, width // 2) * 3
    return {
        "x": draw.activations(tokens, heads, width) if heads else draw.activations(tokens, width),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "interleaved": case.has("interleaved"),
    }


def _linear(draw: Draw, case: Case) -> Inputs:
    sizes = case.sizes
    call: Inputs = {
        "x": draw.activations(sizes["T"], sizes["K"]),
        "weight": draw.weight(sizes["N"], sizes["K"]),
    }
    if case.has("norm"):
        call["norm"] = draw.norm(sizes["K"])
    if case.has("residual"):
        call["residual"] = draw.normal(sizes["T"], sizes["K"]).to(draw.dtype)
    return call


def _mlp(draw: Draw, case: Case) -> Inputs:
    sizes = case.sizes
    return {
        "x": draw.activations(sizes["T"], sizes["D"]),
        "gate_up": draw.weight(2 * sizes["I"], sizes["D"]),
        "down": draw.weight(sizes["D"], sizes["I"]),
    }


def _quantize_rows(draw: Draw, case: Case) -> Inputs:
    x = draw.activations(case.sizes["T"], case.sizes["K"])
    x[0] = 0  # a row without a largest value
    return {"x": x}


def _silu_mul(draw: Draw, case: Case) -> Inputs:
    return {"x": draw.activations(case.sizes["T"], 2 * case.sizes["I"])}


def make_batch(draw: Draw, shape: AttentionShape) -> tuple[PagedBatch, int]:
    """Sequences on pages in random order, and the number of pages, two more than are used."""
    size = shape.page_size
    needed = [-(-length // size) for length in shape.context_lens]
    pages = iter(draw.shuffled(sum(needed) + 2).tolist())
    tables = [[next(pages) for _ in range(count)] for count in needed]
    padded = [table + [0] * (max(needed) - len(table)) for table in tables]
    positions: list[int] = []
    slots: list[int] = []
    for table, queries, length in zip(tables, shape.query_lens, shape.context_lens, strict=True):
        own = range(length - queries, length)
        positions += own
        slots += [table[place // size] * size + place % size for place in own]

    def integers(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=draw.device)

    batch = PagedBatch(
        positions=integers(positions),
        slots=integers(slots),
        query_starts=integers([0, *accumulate(shape.query_lens)]),
        context_lens=integers(shape.context_lens),
        page_table=integers(padded),
        query_lens=shape.query_lens,
        context_lens_host=shape.context_lens,
        page_size=size,
    )
    return batch, sum(needed) + 2


def _mla_write(draw: Draw, case: Case) -> Inputs:
    assert case.attention is not None
    mla = case.attention.mla
    batch, num_pages = make_batch(draw, case.attention)
    tokens = len(batch.slots)
    return {
        "cache": draw.normal(num_pages, batch.page_size, mla.latent_dim).to(draw.dtype),
        "slots": batch.slots,
        "latent": draw.activations(tokens, mla.kv_lora_rank),
        "key_rope": draw.activations(tokens, mla.rope_dim),
        "norm": draw.norm(mla.kv_lora_rank),
        "angles": draw.angles(tokens, mla.rope_dim),
    }


def _mla_attend(draw: Draw, case: Case) -> Inputs:
    assert case.attention is not None
    mla, heads = case.attention.mla, case.sizes["H"]
    batch, num_pages = make_batch(draw, case.attention)
    cache = torch.full((num_pages, batch.page_size, mla.latent_dim), float("nan"))
    cache = cache.to(draw.device, draw.dtype)
    for table, length in zip(batch.page_table, batch.context_lens_host, strict=True):
        places = torch.arange(length, device=draw.device)
        pages = table[places // batch.page_size]
        cache[pages, places % batch.page_size] = draw.normal(length, mla.latent_dim).to(draw.dtype)
    tokens = len(batch.positions)
    rows = mla.nope_dim + mla.v_dim
    return {
        "query": draw.activations(tokens, heads, mla.qk_dim),
        "angles": draw.angles(tokens, mla.rope_dim),
        "cache": cache,
        "kv_b": draw.plain_weight(heads * rows, mla.kv_lora_rank),
        "batch": batch,
        "mla": mla,
        "scale": mla.qk_dim**-0.5,
    }


def _route(draw: Draw, case: Case) -> Inputs:
    moe = case.moe
    assert moe is not None
    weight = draw.plain_weight(moe.num_experts, case.sizes["D"])
    bias = draw.normal(moe.num_experts) * 0.1 if moe.method == "noaux_tc" else None
    if bias is not None and case.has("negative_bias"):
        bias -= 2  # below a mask of 0
    x = draw.activations(case.sizes["T"], case.sizes["D"])
    if case.has("ties"):
        # Small integers, so that equal rows give equal products in any order of summing.
        x, weight = x.round(), (weight * 8).round() / 8
        twin = _twin_experts(moe, draw.device)
        weight = weight[twin]
        bias = None if bias is None else bias[twin]
    return {"x": x, "weight": weight, "bias": bias, "moe": moe}


def _twin_experts(moe: Moe, device: torch.device) -> torch.Tensor:
    """Whose weights each expert takes: pairs are twins, and so are the last two groups."""
    twins = torch.arange(moe.num_experts, device=device) // 2 * 2
    group_size = moe.num_experts // moe.num_groups
    if moe.num_groups > 1:
        twins[-group_size:] = twins[-2 * group_size : -group_size]
    return twins


def _experts(draw: Draw, case: Case) -> Inputs:
    moe, sizes = case.moe, case.sizes
    assert moe is not None
    scores = draw.uniform(sizes["T"], moe.num_experts)
    call: Inputs = {
        "x": draw.activations(sizes["T"], sizes["D"]),
        "expert_ids": scores.argsort(dim=1)[:, : moe.experts_per_token].contiguous(),
        "expert_weights": draw.uniform(sizes["T"], moe.experts_per_token).float(),
        "gate_up": draw.weight(moe.num_experts, 2 * sizes["I"], sizes["D"]),
        "down": draw.weight(moe.num_experts, sizes["D"], sizes["I"]),
    }
    if "shared" in sizes:
        inner = sizes["shared"]
        call["shared"] = draw.weight(2 * inner, sizes["D"]), draw.weight(sizes["D"], inner)
    return call


def _logits(draw: Draw, case: Case) -> torch.Tensor:
    logits = draw.normal(case.sizes["R"], case.sizes["V"]) * 3
    return (logits / 2).round() * 2 if case.has("ties") else logits


def _mask_logits(draw: Draw, case: Case) -> Inputs:
    rows, vocab = case.sizes["R"], case.sizes["V"]
    cells = draw.shuffled(rows * vocab)[: rows * 8]
    biased = draw.integers(rows * vocab, rows * 3)
    values = draw.normal(rows * 3)
    values[0] = float("-inf")
    biased[1] = biased[2]
    return {
        "logits": _logits(draw, case),
        "edits": LogitEdits(
            allowed=draw.integers(256, rows, -(-vocab // 8)).to(torch.uint8),
            biases=Biases(biased // vocab, biased % vocab, values),
            penalties=Penalties(
                rows=cells // vocab,
                ids=cells % vocab,
                counts=draw.integers(3, rows * 8),
                repetition=(1 + draw.uniform(rows)).float(),
                presence=draw.normal(rows),
                frequency=draw.normal(rows),
            ),
        ),
    }


def _sample(draw: Draw, case: Case) -> Inputs:
    logits = _logits(draw, case)
    num_rows, vocab = logits.shape
    logits[:, 0] = float("-inf")
    rows = draw.shuffled(num_rows)[: 0 if case.has("greedy") else max(2, num_rows - 2)]
    size = len(rows)
    uniform = draw.uniform(size)
    uniform[:1] = 0.0
    uniform[1:2] = 1.0 - 2.0**-53

    def choose(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=draw.device)[draw.integers(len(values), size)]

    sampling = SamplingRows(
        rows=rows,
        temperature=choose([0.3, 1.0, 1.5]),
        top_k=choose([0, 1, 5, vocab + 1]),
        top_p=choose([0.2, 0.9, 1.0]),
        min_p=choose([0.0, 0.0, 0.1]),
        uniform=uniform,
    )
    return {"logits": logits, "sampling": sampling}


def _largest(draw: Draw, case: Case) -> Inputs:
    return {"logits": _logits(draw, case)}


def _token_logprobs(draw: Draw, case: Case) -> Inputs:
    tokens = draw.integers(case.sizes["V"], case.sizes["R"])
    return {"logits": _logits(draw, case), "tokens": tokens, "top": case.sizes["top"]}


def _verify(draw: Draw, case: Case) -> Inputs:
    sequences, width = case.sizes["S"], case.sizes["n"]
    return {
        "samples": draw.integers(2, sequences, width + 1),
        "drafts": draw.integers(2, sequences, width),
        "num_drafts": draw.integers(width + 1, sequences),
    }


_MAKERS: Mapping[OpName, Callable[[Draw, Case], Inputs]] = {
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
    "experts": _experts,
    "mask_logits": _mask_logits,
    "largest": _largest,
    "sample": _sample,
    "token_logprobs": _token_logprobs,
    "verify": _verify,
}
