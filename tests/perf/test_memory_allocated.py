"""The ledger of 200 random deployments against the bytes that they hold when they are loaded and
run here: tensors, pages, the kernels' buffers, and torch's allocations at the peak of the largest
steps, as its profiler counts them.

Not counted on either side: the interpreter and the libraries (the runtime reserve), the kernels'
index vectors of some tens of bytes a row.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from fathom.perf import kernel_memory
from fathom.runtime import replay, worker
from fathom.spec.plan import DeploymentPlan
from tests.perf.allocated import held_bytes, random_plan

# One in ten by the reference backend, whose working memory has a test of its own.
RANKS = 200
EACH = 20


def _part(plan: DeploymentPlan, name: str) -> int:
    return sum(line.num_bytes for line in plan.ledger if line.part.startswith(name))


def _check(plan: DeploymentPlan, told: str) -> None:
    held = held_bytes(plan)
    weights = _part(plan, "weights")
    # Each model has a table of the frequencies of its angles beside.
    assert held.weights == weights + 2 * plan.model.mla.rope_dim, told
    assert held.kv == _part(plan, "KV pages"), told
    if plan.ops_backend != "cpu":
        return
    # The buffers were made in these sizes, no step made them grow, and all of them were needed.
    assert sum(held.buffers) == _part(plan, "kernel buffers"), told
    for counted, asked in zip(plan.kernel_buffers, held.asked, strict=True):
        assert asked <= counted <= max(1.03 * asked, asked + 1024), told
    # An index vector of recorded steps is made with the worker, before anyone looks.
    recorded = held.recorded + 8 * (plan.max_sequences + 1)
    assert recorded == _part(plan, "recorded steps"), told
    working = _part(plan, "activations") + _part(plan, "recorded steps")
    predicted = weights + held.kv + sum(held.buffers) + working
    measured = held.weights + held.kv + sum(held.buffers) + held.tensors + held.recorded
    assert 0.99 * measured <= predicted <= 1.01 * measured, told
    assert working >= 0.98 * (held.tensors + held.recorded), told


@pytest.mark.parametrize("first", range(0, RANKS, EACH))
def test_predicted_bytes_are_those_allocated(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + EACH):
        backend = "cpu" if seed % 10 else "reference"
        plan = random_plan(Random(seed), tmp_path / str(seed), backend)
        _check(plan, f"seed {seed}: {plan}")


def test_constants_of_the_runtime_are_the_ledgers() -> None:
    """Too large to be reached by small deployments."""
    assert kernel_memory._RECORDED_SEQUENCES == replay.MAX_SEQUENCES
    assert kernel_memory._PROMPT_ROWS == worker._LOGPROB_ROWS
