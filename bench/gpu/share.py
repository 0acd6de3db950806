"""One tensor-parallel rank's share of DeepSeek-V3, made on the device and stepped.

61 layers, 16 heads, experts 256 wide, vocabulary 16,160, FP8 blocks, random weights: 85 GB. With
the reference ops, which multiply quantised matrices out piece by piece; so this is a floor for
speed, and a test of memory. Collectives are left out.
"""

from __future__ import annotations

import time

import torch

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.registry import build_model
from fathom.ops.comm import SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.runtime.batch import PageTable, Span
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import BFLOAT16
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard
from fathom.weights.synthetic import random_parameters
from gpu.measure import Row, Settings, failure, synchronize, time_calls
from gpu.shapes import SMALL, TP8_SHARE

_PAGE_SIZE = 64
_SAMPLES = 5


@torch.inference_mode()
def run(settings: Settings) -> list[Row]:
    """A row for loading, then one for each step shape."""
    spec = parse_config(settings.pick(TP8_SHARE, SMALL))
    context = settings.pick(1024, 64)
    batches = settings.pick((1, 8, 32), (1, 2))
    began = time.perf_counter()
    model = build_model(
        spec,
        random_parameters(
            spec, Shard(), seed=0, dtype=torch.bfloat16, device=settings.device, mtp=False
        ),
        ops=ReferenceBackend(),
        comm=SingleRank(),
        shard=Shard(),
        dtype=torch.bfloat16,
    ).main
    synchronize(settings)
    rows = [_loading(spec, time.perf_counter() - began, settings)]
    pages = -(-(context + 1) // _PAGE_SIZE)
    table = PageTable(_PAGE_SIZE)
    for index in range(max(batches)):
        table.extend(table.add(), range(index * pages, (index + 1) * pages))
    shape = (spec.num_layers, max(batches) * pages, _PAGE_SIZE, spec.mla.latent_dim)
    cache = torch.randn(shape, dtype=torch.bfloat16, device=settings.device)
    for size in batches:
        spans = [Span(row, context, 1) for row in range(size)]
        rows.append(_step(f"decode of {size} at {context}", model, table, cache, spans, settings))
    prefill = [Span(0, 0, settings.pick(512, 32))]
    rows.append(_step(f"prefill of {prefill[0].length}", model, table, cache, prefill, settings))
    return rows


def _loading(spec: ModelSpec, seconds: float, settings: Settings) -> Row:
    """What the ledger says the weights take, and what the allocator says."""
    ledger = sum(
        row.local_bytes(Shard(), BFLOAT16, dequantize=False) for row in parameter_table(spec)
    )
    return {
        "name": "weights",
        "seconds_to_make": seconds,
        "ledger_bytes": ledger,
        **_memory(settings),
    }


def _memory(settings: Settings) -> dict[str, int]:
    if settings.device.type != "cuda":
        return {}
    memory = {
        "allocated_bytes": torch.cuda.memory_allocated(settings.device),
        "peak_bytes": torch.cuda.max_memory_allocated(settings.device),
    }
    torch.cuda.reset_peak_memory_stats(settings.device)
    return memory


def _step(
    name: str,
    model: DeepseekV3,
    table: PageTable,
    cache: torch.Tensor,
    spans: list[Span],
    settings: Settings,
) -> Row:
    """Forward and the logits of each sequence's last token."""
    num_tokens = sum(span.length for span in spans)
    tokens = [index * 37 % model.spec.vocab_size for index in range(num_tokens)]
    token_ids, batch = table.batch(tokens, spans, settings.device)
    last = batch.query_starts[1:] - 1
    row: Row = {"name": name, "tokens": num_tokens}

    def step(_: int) -> torch.Tensor:
        return model.logits(model.forward(token_ids, batch, cache)[last])

    try:
        row["is_finite"] = bool(torch.isfinite(step(0)).all())
        row["seconds"] = time_calls(step, settings, samples=_SAMPLES, warmup=1)
        row |= _memory(settings)
    except Exception as error:
        row |= failure(error)
    return row
