"""Scheduler, pages and prefix tree in random interleavings, against a strict simulated device, the
naive loop's tokens, and a model of the order kept by the test itself."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fathom.core.executor import Capacity, Handle
from fathom.core.scheduler import Scheduler, SchedulerConfig
from fathom.core.types import Request, SamplingParams, StepPlan, TokenEvent
from fathom.errors import ContextLengthError, OverloadedError
from tests.core.invariants import check_scheduler
from tests.core.naive import Rotating, naive_answer
from tests.core.simulated import PseudoModel, SimulatedExecutor

MODEL = PseudoModel(vocab_size=40, eos_rate=0.05, draft_accuracy=0.7)
EOS, STOP = 7, 8
MAX_QUEUED = 6


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, cancels, plans and commits in any order."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        pool_tokens=st.integers(12, 48),
        depth=st.integers(1, 3),
        num_drafts=st.sampled_from([0, 0, 1, 3]),
        budget=st.integers(4, 20),
        max_sequences=st.integers(1, 5),
        prefix_cache=st.booleans(),
    )
    def start(
        self,
        page_size: int,
        pool_tokens: int,
        depth: int,
        num_drafts: int,
        budget: int,
        max_sequences: int,
        prefix_cache: bool,
    ) -> None:
        num_pages = pool_tokens // page_size
        capacity = Capacity(num_pages, page_size, budget, max_sequences, depth)
        self.max_len = min(30, num_pages * page_size)
        self.depth, self.num_drafts = depth, num_drafts
        self.page_size, self.prefix_cache = page_size, prefix_cache
        self.executor = SimulatedExecutor(capacity, model=MODEL)
        config = SchedulerConfig(
            max_model_len=30,
            max_queued=MAX_QUEUED,
            num_drafts=num_drafts,
            prefix_cache=prefix_cache,
        )
        self.scheduler = Scheduler(config, capacity)
        self.in_flight: deque[tuple[StepPlan, Handle]] = deque()
        self.requests: list[Request] = []  # their index is the sequence's id
        self.periods: list[int | None] = []
        self.live: set[int] = set()
        self.running: set[int] = set()
        self.answers: dict[str, list[int]] = {}

    # What happens from outside

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, 2), min_size=1, max_size=8),
        max_tokens=st.sampled_from([1, 2, 5, 12, None]),
        has_minimum=st.booleans(),
        temperature=st.sampled_from([0.0, 1.0]),
        salt=st.sampled_from(["", "", "tenant"]),
        priority=st.sampled_from([0, 0, 0, 1]),
        period=st.sampled_from([None, None, None, 3]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
    )
    def add(
        self,
        shared: int,
        own: list[int],
        max_tokens: int | None,
        has_minimum: bool,
        temperature: float,
        salt: str,
        priority: int,
        period: int | None,
        prompt_logprobs: int | None,
    ) -> None:
        index = len(self.requests)
        request = Request(
            id=str(index),
            prompt_ids=(*([1, 2, 1, 1] * 3)[:shared], *own),
            sampling=SamplingParams(
                temperature=temperature,
                max_tokens=max_tokens,
                min_tokens=min(3, max_tokens or 3) if has_minimum else 0,
                stop_token_ids=(STOP,),
                prompt_logprobs=prompt_logprobs,
            ),
            seed=index,
            eos_token_ids=(EOS,),
            cache_salt=salt,
            priority=priority,
        )
        num_tokens = len(request.prompt_ids) + (max_tokens or 1)
        num_waiting = self.scheduler.stats().waiting
        try:
            constraint = _constraint(period)
            self.scheduler.add(request, 0.0, constraint)
        except ContextLengthError:
            assert num_tokens > self.max_len
        except OverloadedError:
            assert num_waiting >= MAX_QUEUED
        else:
            assert num_tokens <= self.max_len
            assert num_waiting < MAX_QUEUED
            self.requests.append(request)
            self.periods.append(period)
            self.live.add(index)
            self.answers[request.id] = []

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 99))
    def cancel(self, choice: int) -> None:
        index = sorted(self.live)[choice % len(self.live)]
        event = self.scheduler.cancel(str(index))
        assert event is not None
        self.take(event)
        assert self.scheduler.cancel(str(index)) is None

    @rule()
    def flush(self) -> None:
        """Also with steps in flight: what runs keeps its pages."""
        self.scheduler.flush_cache()

    @precondition(lambda self: len(self.in_flight) < self.depth)
    @rule()
    def plan(self) -> None:
        plan = self.scheduler.plan(0.0)
        if plan is not None:
            self.running -= set(plan.dropped)
            self.check_order(plan)
            self.in_flight.append((plan, self.executor.submit(plan)))
        elif not self.in_flight:
            assert not self.live, "work, an idle device and no plan"

    @precondition(lambda self: self.in_flight)
    @rule()
    def commit(self) -> None:
        plan, handle = self.in_flight.popleft()
        for event in self.scheduler.commit(plan, handle.wait(60)):
            self.take(event)

    # What must hold

    def order(self, index: int) -> tuple[int, int]:
        return self.requests[index].priority, index

    def check_order(self, plan: StepPlan) -> None:
        """Nobody starts before one that comes first in the order, unless that one may wait for its
        prefix; and the first one runs."""
        started = {entry.id for entry in plan.entries if entry.admission}
        self.running |= started
        waiting = self.live - self.running
        for index in started:
            passed = {other for other in waiting if self.order(other) < self.order(index)}
            assert all(self.may_wait_for_prefix(other) for other in passed)
        if not self.in_flight:
            first = min(self.running & self.live, key=self.order)
            assert first in {entry.id for entry in plan.entries}, "the first makes no progress"

    def may_wait_for_prefix(self, index: int) -> bool:
        """Whether a running request starts with the same page, which it may be computing."""
        request, size = self.requests[index], self.page_size
        if not self.prefix_cache or request.sampling.prompt_logprobs is not None:
            return False
        known = self.known(request)

        def promises(other: Request) -> bool:
            tokens = self.known(other)
            return other.cache_salt == request.cache_salt and tokens[:size] == known[:size]

        # One that has ended may still be in flight, and keeps its promise until it is committed.
        return len(known) > size and any(promises(other) for other in self.requests)

    def known(self, request: Request) -> tuple[int, ...]:
        """The request's tokens, those too that its constraint forces before the first sample."""
        constraint = _constraint(self.periods[int(request.id)])
        forced = constraint.forced() if constraint else ()
        return (*request.prompt_ids, *(self.answers[request.id] or forced))

    def take(self, event: TokenEvent) -> None:
        index = int(event.id)
        assert index in self.live, "news of a request that has ended"
        answer = self.answers[event.id]
        answer += event.token_ids
        if event.finish_reason is None:
            return
        self.live.remove(index)
        self.running.discard(index)
        period = self.periods[index]
        constraint = _constraint(period)
        expected, reason = naive_answer(self.requests[index], MODEL, self.max_len, constraint)
        if event.finish_reason == "abort":
            assert tuple(answer) == expected[: len(answer)]
        else:
            assert (tuple(answer), event.finish_reason) == (expected, reason)

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "scheduler"):
            check_scheduler(self.scheduler)
            assert self.scheduler.has_work == bool(self.live)

    def teardown(self) -> None:
        """Nobody starves: all that is left ends within the steps that it needs one by one."""
        if not hasattr(self, "scheduler"):
            return
        num_steps = 0
        bound = 10 + sum(2 * self.max_len + 4 for _ in self.live) * 2
        while self.live or self.in_flight:
            if len(self.in_flight) < self.depth:
                self.plan()
            if self.in_flight:
                self.commit()
            check_scheduler(self.scheduler)
            num_steps += 1
            assert num_steps < bound
        assert self.scheduler.stats().kv_usage == 0


def _constraint(period: int | None) -> Rotating | None:
    """Bound to every `period`-th token, which of some outputs leaves one, and of the first two
    where the period is even."""
    if period is None:
        return None
    return Rotating(
        MODEL.vocab_size, period, lambda i: i % 7 in (3, 4) or (i < 2 and period % 2 == 0)
    )


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
