"""The step loop against what its executor saw: order, overlap, and failures."""

from __future__ import annotations

import pytest

from fathom.core.executor import Capacity
from fathom.core.loop import EngineCore
from fathom.core.scheduler import SchedulerConfig
from fathom.core.types import Request, SamplingParams, TokenEvent
from fathom.errors import UnavailableError
from fathom.perf.plan_shape import LinearTime
from tests.core.simulated import SimulatedExecutor, VirtualClock

COST = LinearTime(submit_s=0.01, step_s=0.02, token_s=0.0)


def ask(name: str, max_tokens: int = 10) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(id=name, prompt_ids=(1, 2, 3), sampling=sampling, seed=0)


def build(
    *, depth: int = 2, cost: LinearTime = COST, num_drafts: int = 0, step_timeout_s: float = 60.0
) -> tuple[EngineCore, VirtualClock]:
    clock = VirtualClock()
    executor = SimulatedExecutor(Capacity(64, 4, 64, 4, depth), cost=cost, clock=clock)
    config = SchedulerConfig(max_model_len=64, num_drafts=num_drafts)
    return EngineCore(executor, config, step_timeout_s=step_timeout_s), clock


def drain(core: EngineCore, clock: VirtualClock) -> list[TokenEvent]:
    events = []
    while core.has_work:
        events += core.step(clock.now_s)
    return events


@pytest.mark.parametrize(("depth", "expected_s"), [(1, 0.30), (2, 0.21)])
def test_depth_two_hides_the_host_behind_the_device(depth: int, expected_s: float) -> None:
    """Ten steps: the host's 10 ms are in each of them, or in the first one only."""
    core, clock = build(depth=depth)
    core.add(ask("a"), 0.0)
    assert len(drain(core, clock)) == 10
    assert clock.now_s == pytest.approx(expected_s)


def test_with_drafts_one_plan_at_a_time_holds_everybody() -> None:
    """Two plans in flight would be two half batches that take turns."""
    core, clock = build(num_drafts=1)
    core.add(ask("a"), 0.0)
    assert [event.id for event in core.step(clock.now_s)] == ["a"]
    core.add(ask("b"), 0.0)
    assert [event.id for event in core.step(clock.now_s)] == ["a", "b"]


def test_a_failed_step_answers_everybody_and_ends_the_engine() -> None:
    core, clock = build(cost=LinearTime(step_s=100.0), step_timeout_s=5.0)
    for name in "abcde":
        core.add(ask(name), 0.0)
    events = drain(core, clock)
    assert [(event.id, event.finish_reason) for event in events] == [(n, "error") for n in "abcde"]
    assert all("not done in 5 s" in event.error for event in events)
    assert "not done in 5 s" in core.error
    assert core.step(clock.now_s) == []
    with pytest.raises(UnavailableError, match="dead"):
        core.add(ask("f"), clock.now_s)


def test_an_idle_core_does_nothing() -> None:
    core, clock = build()
    assert not core.has_work
    assert core.step(clock.now_s) == []
    assert core.cancel("nobody") is None
    assert core.stats().steps == 0


def test_what_is_cancelled_in_flight_still_drains() -> None:
    core, clock = build()
    core.add(ask("a"), 0.0)
    core.step(clock.now_s)
    assert core.cancel("a") is not None
    assert core.has_work
    assert drain(core, clock) == []
    assert core.stats().kv_usage == 0


def test_stats_count_what_passed() -> None:
    core, clock = build()
    core.add(ask("a"), 0.0)
    drain(core, clock)
    stats = core.stats()
    assert (stats.steps, stats.prompt_tokens, stats.generated_tokens) == (10, 3, 10)
