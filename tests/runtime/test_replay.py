"""Compares, bit for bit, replayed decode steps with the model's own forward pass, whatever steps of
other sizes, pages and caches ran in between: recordings share their memory."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from fathom.errors import EngineError
from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.registry import build_model
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.comm import SingleRank
from fathom.runtime.replay import ReplayedModel
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.parallel import Shard
from fathom.weights.synthetic import random_parameter
from tests.models.paged_runs import PagedRun

PAGE_SIZE, ROWS = 16, 4
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "vocab_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 0,
    "torch_dtype": "bfloat16",
}
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"q_lora_rank": None, "num_hidden_layers": 1},
    # What heads find, the latents and the stream are of one size; routes of that of a page table.
    {"v_head_dim": 32, "q_lora_rank": 16, "num_experts_per_tok": 4},
)


def _models(changes: dict[str, Any]) -> tuple[DeepseekV3, ReplayedModel]:
    spec = parse_config({**CONFIG, **changes})
    params = {row.name: random_parameter(row, seed=0) for row in parameter_table(spec)}
    ops = CpuBackend()
    model = build_model(
        spec, params, ops=ops, comm=SingleRank(), shard=Shard(), dtype=torch.bfloat16
    ).main
    return model, ReplayedModel(model, ops, ROWS)


@pytest.mark.parametrize("changes", CHANGES, ids=["latent_queries", "one_layer", "equal_sizes"])
@torch.inference_mode()
def test_replayed_steps_are_the_models_own(changes: dict[str, Any]) -> None:
    (model, replayed), rng = _models(changes), Random(0)
    run = PagedRun(model, PAGE_SIZE)
    sequences = [run.add() for _ in range(6)]
    caches = [run.cache.clone() for _ in range(2)]
    for step in range(150):
        chosen = rng.sample(sequences, rng.randint(1, len(sequences)))
        # Now and then a prompt's chunk, or a cache that no recording is of.
        lens = [rng.randint(1, 40) if rng.random() < 0.03 else 1 for _ in chosen]
        token_ids = torch.tensor([rng.randrange(model.spec.vocab_size) for _ in range(sum(lens))])
        batch = run.batch(list(zip(chosen, lens, strict=True)))
        wanted = model.forward(token_ids, batch, run.cache)
        if step % 40 == 39:
            caches.reverse()
            caches[0].copy_(caches[1])
        found = replayed.forward(token_ids, batch, caches[0])
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))
        assert torch.equal(caches[0].view(torch.int16), run.cache.view(torch.int16))
        for index, size in zip(chosen, lens, strict=True):
            run.computed[index] += size


@torch.inference_mode()
def test_a_call_that_fails_when_it_is_replayed_is_an_error() -> None:
    """The kernels check again what they are given, and the calls after it do not run."""
    model, replayed = _models({})
    run, token_ids = PagedRun(model, PAGE_SIZE), torch.tensor([5])
    batch = run.batch([(run.add(), 1)])
    replayed.forward(token_ids, batch, run.cache)
    beyond = replace(batch, slots=torch.tensor([run.num_pages * PAGE_SIZE]))
    with pytest.raises(EngineError, match="slots: 4096 of 4096"):
        replayed.forward(token_ids, beyond, run.cache)
    assert torch.equal(
        replayed.forward(token_ids, batch, run.cache), model.forward(token_ids, batch, run.cache)
    )
