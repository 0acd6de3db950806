"""Logits of a small random DeepSeek-V3 on the device against float32 on the CPU.

Same weights, same pages, same steps: a prefill of two sequences, a second chunk of one of them
beside a decode step, and a decode step of both.
"""

from __future__ import annotations

import torch

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.registry import build_model
from fathom.ops.comm import SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.runtime.batch import PageTable, Span
from fathom.spec.deepseek import parse_config
from fathom.spec.parallel import Shard
from fathom.weights.synthetic import random_parameters
from gpu.measure import Row, Settings, failure, relative_error
from gpu.shapes import SMALL

_CPU = torch.device("cpu")
_PAGE_SIZE, _NUM_PAGES = 64, 8
_STEPS = (((0, 0, 70), (1, 0, 33)), ((0, 70, 20), (1, 33, 1)), ((0, 90, 1), (1, 34, 1)))
# Float32 may differ by the order of sums. In bfloat16 a router's near tie may fall the other way,
# which no tolerance covers: its error is reported, and not judged.
_CASES: dict[str, tuple[torch.dtype, float | None]] = {
    "float32": (torch.float32, 1e-4),
    "bfloat16": (torch.bfloat16, None),
}


def run(settings: Settings) -> list[Row]:
    """One row per compute dtype, with weights in FP8 blocks that are dequantised on the fly."""
    rows = []
    expected = _logits(_model(torch.float32, _CPU), _CPU)
    for name, (dtype, tolerance) in _CASES.items():
        row: Row = {"name": f"logits {name}", "tolerance": tolerance}
        try:
            found = _logits(_model(dtype, settings.device), settings.device)
            row["relative_error"] = relative_error(found, expected)
            is_same = found.argmax(-1) == expected.argmax(-1)
            row["same_greedy"] = float(is_same.double().mean())
            row["ok"] = tolerance is None or row["relative_error"] <= tolerance
        except Exception as error:
            row |= failure(error)
        rows.append(row)
    return rows


def _model(dtype: torch.dtype, device: torch.device) -> DeepseekV3:
    """The weights are drawn on the CPU, so that every device gets the same ones."""
    spec = parse_config(SMALL)
    params = random_parameters(spec, Shard(), seed=0, dtype=dtype, device=_CPU)
    return build_model(
        spec,
        {name: value.to(device) for name, value in params.items()},
        ops=ReferenceBackend(),
        comm=SingleRank(),
        shard=Shard(),
        dtype=dtype,
    ).main


@torch.inference_mode()
def _logits(model: DeepseekV3, device: torch.device) -> torch.Tensor:
    """Logits [tokens of all steps, V] on the CPU."""
    spec = model.spec
    shape = (spec.num_layers, _NUM_PAGES, _PAGE_SIZE, spec.mla.latent_dim)
    cache = torch.full(shape, torch.nan, dtype=model.dtype, device=device)
    table = PageTable(_PAGE_SIZE)
    rows = [table.add(), table.add()]
    table.extend(rows[0], (5, 2, 7))
    table.extend(rows[1], (1, 4))
    parts = []
    for step in _STEPS:
        spans = [Span(rows[index], start, length) for index, start, length in step]
        tokens = [
            (start + i) * 31 % spec.vocab_size for _, start, length in step for i in range(length)
        ]
        token_ids, batch = table.batch(tokens, spans, device)
        parts.append(model.logits(model.forward(token_ids, batch, cache)).float().cpu())
    return torch.cat(parts)
