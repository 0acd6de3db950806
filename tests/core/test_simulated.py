"""The simulated executor against the executor contract, and its clock against arithmetic."""

from __future__ import annotations

import pytest

from fathom.core.executor import Capacity
from fathom.core.types import Admission, PlanEntry, SamplingParams, StepPlan
from fathom.errors import EngineError
from fathom.perf.plan_shape import LinearTime
from tests.core.executor_conformance import ExecutorCase, ExecutorConformance
from tests.core.simulated import PseudoModel, SimulatedExecutor, VirtualClock


def build(depth: int, page_size: int = 4, **settings: object) -> SimulatedExecutor:
    capacity = Capacity(
        num_pages=64, page_size=page_size, max_batch_tokens=512, max_sequences=16, depth=depth
    )
    return SimulatedExecutor(capacity, **settings)  # type: ignore[arg-type]


class TestConformance(ExecutorConformance):
    case = ExecutorCase(build=build, vocab_size=1000, num_drafts=3)


class TestConformanceOfPagesOfOneToken(ExecutorConformance):
    case = ExecutorCase(build=lambda depth: build(depth, page_size=1), vocab_size=1000)


def entry(id: int, tokens: tuple[int, ...], pages: tuple[int, ...], known: int = 0) -> PlanEntry:
    """The first entry of a greedy sequence whose first `known` tokens are cached."""
    sampling = SamplingParams(temperature=0.0)
    admission = Admission(tokens[:known], len(tokens), sampling, 0, (7,))
    return PlanEntry(id, known, tokens[known:], pages, admission=admission)


def test_time_passes_on_the_device_and_the_host() -> None:
    clock = VirtualClock(10.0)
    cost = LinearTime(submit_s=0.5, step_s=2.0, token_s=0.1)
    executor = build(2, clock=clock, cost=cost)
    first = executor.submit(StepPlan(1, (entry(1, (1, 2), (0,)),)))
    second = executor.submit(StepPlan(2, (entry(2, (1,), (1,)),)))
    assert clock.now_s == pytest.approx(11.0)
    assert not first.done()
    assert first.wait(60).elapsed_s == pytest.approx(2.2)
    assert clock.now_s == pytest.approx(12.7)  # 10 + host 0.5 + 2.2
    second.wait(60)
    assert clock.now_s == pytest.approx(14.8)  # the device went on at once: + 2.1


def test_a_step_that_misses_its_deadline_is_an_error() -> None:
    executor = build(1, cost=LinearTime(step_s=100.0))
    handle = executor.submit(StepPlan(1, ()))
    with pytest.raises(EngineError, match="not done in 30 s"):
        handle.wait(30)


def test_a_prefix_hit_on_pages_of_another_prefix_is_detected() -> None:
    executor = build(1)
    executor.submit(StepPlan(1, (entry(1, (1, 2, 3, 4, 5), (0, 1)),))).wait(1)
    wrong = entry(2, (9, 2, 3, 4, 5), (0, 2), known=4)
    with pytest.raises(EngineError, match="another prefix at position 0"):
        executor.submit(StepPlan(2, (wrong,), dropped=(1,)))


def test_a_prefix_that_was_never_computed_is_detected() -> None:
    executor = build(1)
    with pytest.raises(EngineError, match="another prefix"):
        executor.submit(StepPlan(1, (entry(1, (1, 2, 3, 4, 5), (0, 1), known=4),)))


def test_a_page_given_away_while_its_owner_is_in_flight_is_detected() -> None:
    executor = build(2)
    executor.submit(StepPlan(1, (entry(1, (1, 2), (0,)),)))
    with pytest.raises(EngineError, match="page 0"):
        executor.submit(StepPlan(2, (entry(2, (3,), (0,)),), dropped=(1,)))


def test_a_token_that_contradicts_the_sampled_one_is_detected() -> None:
    executor = build(1)
    token_id = executor.submit(StepPlan(1, (entry(1, (1, 2), (0,)),))).wait(1).tokens[1][0]
    with pytest.raises(EngineError, match="tokens of sequence 1"):
        executor.submit(StepPlan(2, (PlanEntry(1, 2, (token_id + 1,)),)))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 30)])
def test_end_tokens_come_at_the_rate_asked(rate: float, expected: int) -> None:
    model = PseudoModel(vocab_size=10**9, eos_rate=rate)
    admission = Admission((), 1, SamplingParams(), 0, (7,))
    tokens = [model.next_token(i * 7919, admission, 1, None) for i in range(30)]
    assert tokens.count(7) == expected


def test_end_tokens_wait_for_min_tokens() -> None:
    model = PseudoModel(vocab_size=8, eos_rate=1.0)
    admission = Admission((), 1, SamplingParams(min_tokens=2), 0, (7,))
    assert [model.next_token(3, admission, i, None) == 7 for i in range(3)] == [False, False, True]


def test_drafts_are_right_as_often_as_asked() -> None:
    counts = {}
    for accuracy in (0.0, 0.5, 1.0):
        executor = build(1, model=PseudoModel(draft_accuracy=accuracy))
        result = executor.submit(StepPlan(1, (entry(1, (1,), tuple(range(60))),), (), 1)).wait(1)
        start, accepted = 1, 0
        for step in range(2, 102):
            drafts = result.drafts[1]
            plan = StepPlan(
                step, (PlanEntry(1, start, result.tokens[1][-1:], drafts=drafts),), (), 1
            )
            result = executor.submit(plan).wait(1)
            accepted += len(result.tokens[1]) - 1
            start += len(result.tokens[1])
        counts[accuracy] = accepted
    assert counts[0.0] == 0
    assert 30 <= counts[0.5] <= 70
    assert counts[1.0] == 100
