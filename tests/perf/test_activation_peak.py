"""The ledger's estimate of working memory against the peak that torch's profiler sees in a step of
the reference backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.ops.batch import PagedBatch
from fathom.ops.comm import SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.perf.working import WorkingSet
from fathom.spec.deepseek import parse_config
from fathom.spec.formats import FLOAT32
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout, Shard
from fathom.weights.synthetic import random_parameters

PAGE = 64
CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "max_position_embeddings": 8192,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 768,
    "moe_intermediate_size": 128,
    "vocab_size": 2048,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 128,
    "num_nextn_predict_layers": 0,
}


def _batch(spans: Sequence[tuple[int, int]]) -> tuple[int, PagedBatch]:
    """Pages used, and the batch, of sequences with (cached, new) tokens."""
    positions, slots, tables, num_pages = [], [], [], 0
    for past, new in spans:
        table = list(range(num_pages, num_pages - (-(past + new) // PAGE)))
        num_pages += len(table)
        tables.append(table)
        positions += range(past, past + new)
        slots += [table[at // PAGE] * PAGE + at % PAGE for at in range(past, past + new)]
    width = max(map(len, tables))
    lens = [new for _, new in spans]
    contexts = [past + new for past, new in spans]
    return num_pages, PagedBatch(
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        query_starts=torch.tensor([0, *lens]).cumsum(0),
        context_lens=torch.tensor(contexts),
        page_table=torch.tensor([table + [0] * (width - len(table)) for table in tables]),
        query_lens=tuple(lens),
        context_lens_host=tuple(contexts),
        page_size=PAGE,
    )


def _peak_bytes(spec: ModelSpec, spans: Sequence[tuple[int, int]]) -> int:
    """Largest sum of live allocations of one step with all its logits."""
    params = random_parameters(spec, Shard(), seed=0, dtype=torch.float32, device=CPU)
    model = DeepseekV3(
        spec, params, ops=ReferenceBackend(), comm=SingleRank(), shard=Shard(), dtype=torch.float32
    )
    num_pages, batch = _batch(spans)
    cache = torch.zeros(spec.num_layers, num_pages, PAGE, spec.mla.latent_dim)
    token_ids = torch.zeros(len(batch.positions), dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        hidden = model.forward(token_ids, batch, cache)
        model.logits(hidden[batch.query_starts[1:] - 1])
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, num_bytes in changes:
        live += num_bytes
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("spans", "fields"),
    [
        ([(0, 256)], {}),
        ([(1024, 256)], {}),
        ([(700, 1)] * 8, {}),
        ([(700, 1)] * 8 + [(0, 248)], {}),
        ([(0, 256)], {"num_experts_per_tok": 8, "hidden_size": 1024}),
        ([(768, 256)], {"num_attention_heads": 16}),
    ],
)
def test_a_step_stays_below_the_estimate_and_not_far(
    spans: list[tuple[int, int]], fields: dict[str, Any]
) -> None:
    spec = parse_config({**CONFIG, **fields})
    peak = _peak_bytes(spec, spans)
    working = WorkingSet(
        device="cpu",
        spec=spec,
        layout=Layout(),
        compute=FLOAT32,
        dequantize=True,
        max_batch_tokens=sum(new for _, new in spans),
        max_sequences=len(spans),
        max_model_len=max(past + new for past, new in spans),
        num_drafts=0,
    )
    estimate = working.activation_bytes() + working.gather_bytes()
    # The estimate has room for a prompt's expanded keys, which decode alone does without.
    is_decode = all(new == 1 for _, new in spans)
    assert peak <= estimate <= (4 if is_decode else 2.5) * peak
