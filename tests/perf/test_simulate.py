"""The simulator against the real step loop on the strict executor, which checks every page that is
read, and against what must hold for any workload."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.executor import Capacity
from fathom.core.loop import EngineCore
from fathom.core.scheduler import SchedulerConfig
from fathom.core.types import Request, SamplingParams
from fathom.perf import datasets
from fathom.perf.datasets import PrefixShape, RandomShape, TurnShape
from fathom.perf.plan_shape import LinearTime
from fathom.perf.shape import StepShape
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment, Simulation
from fathom.perf.virtual import Runs, VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload, arrive, gamma_arrivals
from tests.core.simulated import SimulatedExecutor, VirtualClock

COST = LinearTime(submit_s=0.003, step_s=0.02, token_s=0.001)


def deployment(
    *,
    num_pages: int = 64,
    depth: int = 2,
    groups: int = 1,
    max_queued: int = 10**6,
    entry_s: float = 0.0,
    stages: int = 1,
    drafts: int = 0,
) -> Deployment:
    return Deployment(
        capacity=Capacity(num_pages, 4, 32, 6, depth),
        scheduler=SchedulerConfig(
            max_model_len=128, max_queued=max_queued, run_ahead=stages == 1, num_drafts=drafts
        ),
        num_groups=groups,
        entry_s=entry_s,
        num_stages=stages,
        draft_acceptance=0.5,
    )


def timed(requests: list[LoadRequest], rate: float, seed: int) -> tuple[LoadRequest, ...]:
    count = sum(one.after is None for one in requests)
    return arrive(requests, gamma_arrivals(count, rate, Random(seed)))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Random, prefix-sharing and conversational load, open and closed."""
    count, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**20))
    rng, words = Random(seed), VirtualVocabulary()
    kind = draw(st.sampled_from(["random", "prefix", "turns"]))
    if kind == "random":
        shape = RandomShape(
            input_len=draw(st.integers(1, 40)),
            output_len=draw(st.integers(1, 20)),
            range_ratio=draw(st.sampled_from([0.0, 0.9])),
        )
        made = datasets.random_requests(count, shape, words, rng)
    elif kind == "prefix":
        prefixes = PrefixShape(prefix_len=24, suffix_len=7, num_prefixes=3, output_len=6)
        made = datasets.prefix_requests(count, prefixes, words, rng)
    else:
        turns = TurnShape(num_turns=3, input_len=9, output_len=8, think_s=0.1)
        made = datasets.turn_requests(count, turns, words, rng)
    rate = draw(st.sampled_from([0.5, 5.0, 50.0, math.inf]))
    limit = draw(st.sampled_from([None, 1, 4]))
    return Workload(requests=timed(made, rate, seed), max_concurrency=limit)


class Real:
    """The same open workload through `EngineCore` on the strict executor."""

    def __init__(self, deployed: Deployment, requests: tuple[LoadRequest, ...]) -> None:
        self.clock = VirtualClock()
        executor = SimulatedExecutor(deployed.capacity, cost=COST, clock=self.clock)
        core = EngineCore(executor, deployed.scheduler)
        left = list(enumerate(requests))
        self.times_s: dict[str, list[float]] = {}
        while left or core.has_work:
            if not core.has_work:
                self.clock.now_s = max(self.clock.now_s, left[0][1].at_s)
            while left and left[0][1].at_s <= self.clock.now_s:
                index, one = left.pop(0)
                assert isinstance(one.prompt, Runs)
                sampling = SamplingParams(max_tokens=one.output_len, ignore_eos=True)
                request = Request(
                    id=str(index), prompt_ids=one.prompt.ids(), sampling=sampling, seed=index
                )
                core.add(request, self.clock.now_s)
            for event in core.step(self.clock.now_s):
                self.times_s.setdefault(event.id, []).append(self.clock.now_s)
        self.stats = core.stats()


@given(workloads(), st.sampled_from([1, 2]), st.sampled_from([32, 64]))
@settings(max_examples=60, deadline=None)
def test_it_is_the_real_loop_to_the_last_bit(load: Workload, depth: int, num_pages: int) -> None:
    """Also where pages run short; only follow-ups and the client's limit are left out."""
    open_load = Workload(requests=tuple(one for one in load.requests if one.after is None))
    deployed = deployment(depth=depth, num_pages=num_pages)
    found = simulate(open_load, deployed, COST)
    real = Real(deployed, open_load.requests)
    assert {str(one.index): list(one.times_s) for one in found.report.records} == real.times_s
    assert found.stats == (real.stats,)


@given(
    workloads(),
    st.integers(1, 3),
    st.sampled_from([32, 64]),
    st.sampled_from([10**6, 3]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([(1, 0), (1, 2), (2, 0), (2, 1)]),
)
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost(
    load: Workload,
    groups: int,
    num_pages: int,
    max_queued: int,
    entry_s: float,
    staged: tuple[int, int],
) -> None:
    deployed = deployment(
        groups=groups,
        num_pages=num_pages,
        max_queued=max_queued,
        entry_s=entry_s,
        stages=staged[0],
        drafts=staged[1],
    )
    found = simulate(load, deployed, COST)
    records, line = found.report.records, found.timeline
    assert [one.index for one in records] == list(range(len(load.requests)))
    answered = [one for one in records if one.is_complete]
    for one in answered:
        asked = load.requests[one.index]
        assert one.output_tokens == asked.output_len
        assert len(one.times_s) <= asked.output_len
        assert staged[1] or len(one.times_s) == asked.output_len
        assert one.due_s <= one.sent_s <= one.times_s[0] <= one.times_s[-1] == one.end_s
        started_s = found.started_s[one.index]
        assert started_s is not None
        assert one.sent_s + entry_s <= started_s < one.times_s[0]
        if asked.after is not None:
            before = records[asked.after]
            assert one.sent_s >= before.end_s + asked.at_s
    assert sum(one.generated_tokens for one in found.stats) == sum(
        load.requests[one.index].output_len for one in answered
    )
    assert sum(one.computed_tokens for one in found.stats) == sum(line.num_tokens)
    assert all(one.running == one.waiting == 0 and one.kv_usage == 0 for one in found.stats)
    assert all(before <= after for before, after in zip(line.end_s, line.begin_s[1:], strict=False))
    if load.max_concurrency is not None:
        assert found.report.peak_concurrency() <= load.max_concurrency
    if max_queued == 3:
        assert set(found.report.errors()) <= {"http_429"}
    else:
        assert len(answered) == len(records)


def as_bytes(found: Simulation) -> bytes:
    line = {name: list(getattr(found.timeline, name)) for name in found.timeline.__slots__}
    return msgspec.json.encode((found.report, found.stats, found.started_s, line))


@given(workloads(), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_same_load_gives_the_same_bytes(load: Workload, groups: int) -> None:
    first, second = (as_bytes(simulate(load, deployment(groups=groups), COST)) for _ in range(2))
    assert first == second


def test_a_conversation_finds_its_own_answers_in_the_cache() -> None:
    """Turn by turn, all whole pages of what was said before are there, the answers' too."""
    shape = TurnShape(num_turns=3, input_len=8, output_len=8, think_s=1.0)
    made = datasets.turn_requests(3, shape, VirtualVocabulary(), Random(1))
    found = simulate(Workload(requests=tuple(made)), deployment(), COST)
    # The last token of an answer is never computed: its page is not full before the next turn.
    assert found.stats[0].prefix_hits == 12 + 28
    assert found.stats[0].prefix_queries == 8 + 24 + 40


def test_time_is_that_of_hand_arithmetic() -> None:
    """One request of 3 tokens and 2 of answer: host 3 ms and device 20 + n ms for each step; the
    second step is planned while the first runs."""
    one = LoadRequest(prompt=Runs(((5, 3),)), prompt_len=3, output_len=2, at_s=1.0)
    [record] = simulate(Workload(requests=(one,)), deployment(), COST).report.records
    assert record.times_s == pytest.approx((1.0 + 0.003 + 0.023, 1.0 + 0.003 + 0.023 + 0.021))


@pytest.mark.parametrize(("chance", "num_steps"), [(1.0, 1 + 4), (0.0, 1 + 10)])
def test_drafts_that_are_right_save_steps(chance: float, num_steps: int) -> None:
    """An answer of 11 tokens: one of the prompt's step, then three a step where both drafts are
    right (the last step needs no more than one), or one a step where the first is wrong."""
    one = LoadRequest(prompt=Runs(((5, 3),)), prompt_len=3, output_len=11)
    drafting = replace(deployment(drafts=2), draft_acceptance=chance)
    found = simulate(Workload(requests=(one,)), drafting, COST)
    [record] = found.report.records
    assert (record.output_tokens, len(record.times_s)) == (11, num_steps)
    assert len(found.timeline) == num_steps
    assert found.stats[0].generated_tokens == 11


def test_stages_work_on_different_sequences() -> None:
    """Each step takes its whole time, and the next begins when the first of two stages is free:
    2 ms of host, then 20 + 3 ms and 20 + 1 ms of device, half of them on each stage."""
    cost = LinearTime(submit_s=0.002, step_s=0.02, token_s=0.001)
    load = tuple(
        LoadRequest(prompt=Runs(((9 + at, 3),)), prompt_len=3, output_len=2, at_s=at * 1e-3)
        for at in range(2)
    )
    one, other = simulate(Workload(requests=load), deployment(stages=2), cost).report.records
    assert one.times_s == pytest.approx((0.025, 0.025 + 0.002 + 0.021))
    # Its first stage is free 11.5 ms after the other's began, and the last is not overtaken.
    assert other.times_s[0] == pytest.approx(0.002 + 0.0115 + 0.023)


def test_groups_step_together_and_wait_for_the_fullest() -> None:
    class Tokens:
        """A millisecond for each position, one for each latent read."""

        def device_s(self, shape: StepShape) -> float:
            return 0.001 * (shape.num_tokens + shape.kv_tokens)

        def host_s(self, shape: StepShape) -> float:
            return 0.0

    lens = (4, 10, 6)
    load = tuple(
        LoadRequest(prompt=Runs(((9 + one, one),)), prompt_len=one, output_len=1) for one in lens
    )
    found = simulate(Workload(requests=load), deployment(groups=3), Tokens())
    # Each group has one: 20 positions, and three times the fullest context.
    ends = [one.end_s for one in found.report.records]
    assert ends == pytest.approx([0.020 + 0.030] * 3)
    assert list(found.timeline.num_sequences) == [3]


def test_what_cannot_run_is_told_and_stops_nobody() -> None:
    sizes = [(10**9, 1), (8, 500), (8, 2)]
    load = tuple(
        LoadRequest(prompt=Runs(((one, one),)), prompt_len=one, output_len=out)
        for one, out in sizes
    )
    found = simulate(Workload(requests=load, max_concurrency=1), deployment(), COST)
    kinds = [one.error_kind for one in found.report.records]
    assert kinds == ["http_400", "http_400", ""]


def test_a_long_line_of_refusals_does_not_run_out_of_stack() -> None:
    one = LoadRequest(prompt=Runs(((1, 999),)), prompt_len=999, output_len=1)
    found = simulate(Workload(requests=(one,) * 5000, max_concurrency=1), deployment(), COST)
    assert found.report.errors()["http_400"][0] == 5000
