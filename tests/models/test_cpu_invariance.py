"""Compares, bit for bit, a sequence's logits on the CPU kernels however it was computed: alone and
whole, in chunks, token by token, among others, on shared pages, by one thread or two."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.models.registry import build_model
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.comm import SingleRank
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import BFLOAT16, FP8_LATENT, kv_cell_bytes
from fathom.spec.held import Quantization, quantized_format
from fathom.spec.parallel import Shard
from fathom.weights.place import convert
from fathom.weights.synthetic import random_parameter
from tests.models.paged_runs import Chunk, PagedRun

FORMATS = ("bfloat16", "fp8", "int8", "int4")
KV_FORMATS = ("bfloat16", "fp8")
Weights = Literal["bfloat16", "fp8", "int8", "int4"]
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 128,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "vocab_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 64,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 0,
    "torch_dtype": "bfloat16",
}
PAGE_SIZE = 16


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    library.start_threads(1)


@cache
def model(weights: Weights) -> Any:
    spec = parse_config(CONFIG)
    params = {}
    for row in parameter_table(spec):
        value = random_parameter(row, seed=0)
        if weights != "bfloat16":
            asked = cast(Quantization, weights)
            held = quantized_format(row.role, row.shape, row.shape, row.format, asked)
            value = convert(row.name, value, held) if held is not None else value
        params[row.name] = value
    return build_model(
        spec, params, ops=CpuBackend(), comm=SingleRank(), shard=Shard(), dtype=torch.bfloat16
    ).main


def new_run(weights: Weights, kv: str, seed: int = 0) -> PagedRun:
    run = PagedRun(model(weights), PAGE_SIZE, seed=seed)
    if kv == "fp8":
        mla = run.model.spec.mla
        width = kv_cell_bytes(FP8_LATENT, mla.kv_lora_rank, mla.rope_dim)
        run.cache = torch.full((*run.cache.shape[:3], width), 255, dtype=torch.uint8)
    else:
        assert run.cache.dtype == torch.bfloat16
        assert kv == BFLOAT16.name
    return run


def tokens(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG["vocab_size"], (length,), generator=generator).tolist()


def alone(weights: Weights, kv: str, sequence: list[int]) -> torch.Tensor:
    """All logits of a sequence that is computed by itself in one step, by one thread."""
    library.start_threads(1)
    return new_run(weights, kv).logits([sequence], [[(0, len(sequence))]])[0]


def schedule(seed: int) -> tuple[list[int], list[list[Chunk]]]:
    """Lengths of a few sequences, and steps that compute all of each in chunks of any size."""
    drawn = random.Random(seed)
    lengths = [drawn.randint(1, 90) for _ in range(drawn.randint(2, 5))]
    left = dict(enumerate(lengths))
    steps: list[list[Chunk]] = []
    while left:
        chunks = []
        for index in drawn.sample(sorted(left), len(left)):
            size = min(drawn.choice((0, 1, 1, 2, 7, 33, 90)), left[index])
            if size:
                chunks.append((index, size))
                left[index] -= size
                if not left[index]:
                    del left[index]
        if chunks:
            steps.append(chunks)
    return lengths, steps


@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("weights", FORMATS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2)))
def test_neighbours_chunks_and_threads_change_no_bit(
    weights: Weights, kv: str, seed: int, threads: int
) -> None:
    lengths, steps = schedule(seed)
    sequences = [tokens(seed, length) for seed, length in enumerate(lengths)]
    wanted = [alone(weights, kv, sequence) for sequence in sequences]
    library.start_threads(threads)
    got = new_run(weights, kv, seed=1).logits(sequences, steps)
    for one, other in zip(got, wanted, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("weights", FORMATS)
def test_a_long_context_is_the_same_in_one_step_and_token_by_token(
    weights: Weights, kv: str
) -> None:
    """1,100 tokens cross the borders of key blocks and of splits, which decoding runs side by side
    and prefill one after the other."""
    sequence = tokens(7, 1100)
    wanted = alone(weights, kv, sequence)
    library.start_threads(2)
    decoded: list[list[Chunk]] = [[(0, 1)]] * 40
    steps: list[list[Chunk]] = [
        [(0, 130)],
        [(0, 500)],
        [(0, 3)],
        *decoded,
        [(0, 420)],
        *decoded[:7],
    ]
    assert sum(size for ((_, size),) in steps) == 1100
    got = new_run(weights, kv, seed=2).logits([sequence], steps)[0]
    assert got.equal(wanted)


@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("weights", FORMATS)
def test_shared_prefix_pages_change_no_bit(weights: Weights, kv: str) -> None:
    prefix, tails = tokens(3, 64), [tokens(4, 30), tokens(5, 45)]
    wanted = [alone(weights, kv, prefix + tail)[64:] for tail in tails]
    run = new_run(weights, kv)
    first = run.add()
    run.step([(first, prefix + tails[0])])
    second = run.add(prefix_of=first, shared_pages=64 // PAGE_SIZE)
    third = run.add(prefix_of=first, shared_pages=64 // PAGE_SIZE)
    hidden = run.step([(second, tails[1]), (third, tails[0])])
    assert run.model.logits(hidden[0]).equal(wanted[1])
    assert run.model.logits(hidden[1]).equal(wanted[0])
