"""Compares models of int8 and int4 weights with the same weights multiplied out, and with each
other over several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fathom.models.registry import build_model
from fathom.ops.comm import Communicator, SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.spec.held import Quantization
from fathom.spec.parallel import Layout, Shard
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.synthetic import write_checkpoint
from tests.models.paged_runs import PagedRun
from tests.models.thread_group import run_ranks
from tests.weights.published_layouts import QUANTIZED
from tests.weights.tiny_checkpoints import TINY_V3

TOKENS = torch.randint(128, (40,), generator=torch.Generator().manual_seed(2)).tolist()


def _logits(
    path: Path,
    *,
    dequantize: bool = False,
    quantization: Quantization | None = None,
    comm: Communicator | None = None,
) -> torch.Tensor:
    comm = comm or SingleRank()
    checkpoint, shard = open_checkpoint(path), Shard(Layout(tp=comm.world_size), comm.rank)
    params = load_parameters(
        checkpoint,
        shard,
        dtype=torch.float32,
        device=torch.device("cpu"),
        dequantize=dequantize,
        quantization=quantization,
    )
    model = build_model(
        checkpoint.spec,
        params,
        ops=ReferenceBackend(),
        comm=comm,
        shard=shard,
        dtype=torch.float32,
    )
    return PagedRun(model.main, 16).logits([TOKENS], [[(0, 30)], [(0, 1)], [(0, 9)]])[0]


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stored_formats(method: str, world_size: int, tmp_path: Path) -> None:
    write_checkpoint(QUANTIZED[method], tmp_path, seed=7)
    wanted = _logits(tmp_path, dequantize=True)
    if world_size == 1:
        parts = [_logits(tmp_path)]
    else:
        parts = run_ranks(world_size, lambda comm: _logits(tmp_path, comm=comm))
    for found in parts:
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.02), ("int4", 0.3), ("fp8", 0.1)])
def test_quantised_at_load(quantization: Quantization, error: float, tmp_path: Path) -> None:
    """Near the plain weights' logits, as near as that many bits go with random weights."""
    write_checkpoint(TINY_V3, tmp_path, seed=7)
    wanted = _logits(tmp_path)
    found = _logits(tmp_path, quantization=quantization)
    assert 0 < (found - wanted).norm() <= error * wanted.norm()
