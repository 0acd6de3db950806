"""A workload on the real scheduler, prefix tree and page pool, in virtual time.

The loop is `core.loop`'s, for one scheduler or for several in lock step (DP attention: each group
has sequences and pages of its own, and all of them take every step together). Nothing is computed:
a step takes what the cost model says, and a request's answer is one token id again and again,
which its follow-up repeats, so that the prefix cache finds a conversation as it would find a real
one. Drafts are right by chances of a fixed seed; no clock comes in: the same load, the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import cycle
from math import inf
from random import Random

from fathom.core.scheduler import Scheduler
from fathom.core.types import Request, SamplingParams, StepPlan, StepResult, TokenEvent
from fathom.errors import ContextLengthError, FathomError, OverloadedError
from fathom.perf.plan_shape import lock_step, plan_shape
from fathom.perf.report import Report, RequestRecord
from fathom.perf.shape import StepShape, StepTime
from fathom.perf.simulation import Deployment, Simulation, Timeline
from fathom.perf.virtual import Runs
from fathom.perf.workload import Workload

_NOTHING = StepShape(0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class _Sent:
    """A request that the schedulers have or had."""

    due_s: float
    sent_s: float
    group: int = 0
    started_s: float | None = None
    num_tokens: int = 0
    times_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Flight:
    """A step under way: the plan of each group that takes part."""

    plans: list[tuple[int, StepPlan]]
    end_s: float


def simulate(workload: Workload, deployment: Deployment, cost: StepTime) -> Simulation:
    """Run a workload to its end. Requests that can never run, or find the queue full, fail as they
    would: see `Report.errors`."""
    return _Run(workload, deployment, cost).run()


class _Run:
    """The state of one simulation."""

    def __init__(self, workload: Workload, deployment: Deployment, cost: StepTime) -> None:
        self._requests, self._limit = workload.requests, workload.max_concurrency
        self._is_closed = workload.is_closed
        self._deployment, self._cost = deployment, cost
        config, capacity = deployment.scheduler, deployment.capacity
        self._schedulers = [Scheduler(config, capacity) for _ in range(deployment.num_groups)]
        can_overlap = config.run_ahead and not config.num_drafts
        self._depth = capacity.depth if can_overlap or deployment.num_stages > 1 else 1
        self._turns = cycle(range(deployment.num_groups))
        self._loads = [0] * deployment.num_groups
        self._now_s = 0.0
        self._free_s = [0.0] * deployment.num_stages  # from when each stage is
        self._flights: deque[_Flight] = deque()
        self._due = [(one.at_s, i) for i, one in enumerate(self._requests) if one.after is None]
        heapify(self._due)
        self._followers: dict[int, list[int]] = {}
        for index, one in enumerate(self._requests):
            if one.after is not None:
                self._followers.setdefault(one.after, []).append(index)
        self._held: deque[tuple[int, float]] = deque()  # by the client, beyond its limit
        self._entering: deque[tuple[float, int, _Sent]] = deque()  # in the order of their times
        self._num_out = 0
        self._sent: dict[str, _Sent] = {}
        self._records: list[RequestRecord] = []
        self._started_s: list[float | None] = [None] * len(self._requests)
        self._samplings: dict[int, SamplingParams] = {}
        self._answers: list[dict[int, tuple[int, ...]]] = [{} for _ in self._schedulers]
        self._timeline, self._luck = Timeline(), Random(0)

    def run(self) -> Simulation:
        """Until every request has ended."""
        while True:
            self._take_due()
            if not self._step():
                if self._next_s == inf:
                    break
                self._now_s = max(self._now_s, self._next_s)
        assert len(self._records) == len(self._requests), "a request without an end"
        records = tuple(sorted(self._records, key=lambda one: one.index))
        duration_s = max((one.end_s for one in records), default=0.0)
        return Simulation(
            report=Report(records=records, duration_s=duration_s, is_closed=self._is_closed),
            timeline=self._timeline,
            stats=tuple(scheduler.stats() for scheduler in self._schedulers),
            started_s=tuple(self._started_s),
        )

    # The client's side

    @property
    def _next_s(self) -> float:
        """When the next request comes by itself."""
        return min((queue[0][0] for queue in (self._due, self._entering) if queue), default=inf)

    def _take_due(self) -> None:
        """Send what is due by now; what the client's limit holds back waits its turn."""
        while self._due and self._due[0][0] <= self._now_s:
            due_s, index = heappop(self._due)
            if self._limit is not None and self._num_out >= self._limit:
                self._held.append((index, due_s))
            else:
                self._send(index, due_s, due_s)
        while self._entering and self._entering[0][0] <= self._now_s:
            _, index, sent = self._entering.popleft()
            self._enter(index, sent)
        self._let_go()

    def _send(self, index: int, due_s: float, sent_s: float) -> None:
        self._num_out += 1
        sent = _Sent(due_s, sent_s)
        if self._deployment.entry_s:
            self._entering.append((sent_s + self._deployment.entry_s, index, sent))
        else:
            self._enter(index, sent)

    def _enter(self, index: int, sent: _Sent) -> None:
        """Queue a request in the group that it is routed to."""
        asked = self._requests[index]
        sent.group = next(self._turns)
        if self._deployment.routing == "least_loaded":
            sent.group = min(range(len(self._loads)), key=self._loads.__getitem__)
        try:
            self._schedulers[sent.group].add(self._request(index, sent.sent_s), self._now_s)
        except FathomError as error:
            kind = "http_429" if isinstance(error, OverloadedError) else "http_400"
            end_s = max(self._now_s, sent.sent_s)
            self._end(index, sent, end_s, error_kind=kind, error=str(error))
            return
        self._loads[sent.group] += asked.prompt_len + asked.output_len
        self._sent[str(index)] = sent

    def _request(self, index: int, sent_s: float) -> Request:
        """Raises: ContextLengthError, before its tokens are made, for an endless prompt."""
        asked = self._requests[index]
        longest = self._deployment.scheduler.max_model_len
        if asked.prompt_len >= longest:
            found = f"{asked.prompt_len} tokens"
            wanted = f"at most {longest - 1} tokens"
            raise ContextLengthError(
                "prompt is too long", param="prompt", found=found, wanted=wanted
            )
        sampling = self._samplings.get(asked.output_len)
        if sampling is None:
            sampling = SamplingParams(max_tokens=asked.output_len, ignore_eos=True)
            self._samplings[asked.output_len] = sampling
        assert not isinstance(asked.prompt, str), "a simulation has no tokenizer"
        ids = asked.prompt.ids() if isinstance(asked.prompt, Runs) else asked.prompt
        return Request(
            id=str(index),
            prompt_ids=ids,
            sampling=sampling,
            seed=self._answer_id(index),
            arrival_s=sent_s,
        )

    def _answer_id(self, index: int) -> int:
        """The token that the answer is made of: what a follow-up says after this prompt, else one
        that no prompt has. It travels as the request's seed, which workers are told."""
        for follower in self._followers.get(index, ()):
            said = self._requests[follower].prompt
            answer = said.at(self._requests[index].prompt_len) if isinstance(said, Runs) else None
            if answer is not None:
                return answer
        return -1 - index

    def _end(
        self, index: int, sent: _Sent, end_s: float, *, error_kind: str = "", error: str = ""
    ) -> None:
        """Record a request, and let the clients of its follow-ups think."""
        self._started_s[index] = sent.started_s
        self._records.append(
            RequestRecord(
                index=index,
                due_s=sent.sent_s if self._is_closed else sent.due_s,
                sent_s=sent.sent_s,
                end_s=end_s,
                times_s=tuple(sent.times_s),
                prompt_tokens=self._requests[index].prompt_len,
                output_tokens=sent.num_tokens,
                error_kind=error_kind,
                error=error,
            )
        )
        self._num_out -= 1
        for follower in self._followers.get(index, ()):
            heappush(self._due, (end_s + self._requests[follower].at_s, follower))

    def _let_go(self) -> None:
        """Send what the client's limit no longer holds back."""
        while self._held and self._num_out < (self._limit or 0):
            index, due_s = self._held.popleft()
            self._send(index, due_s, self._now_s)

    # The engine's side

    def _step(self) -> bool:
        """What `EngineCore.step` does, for all groups: submit where there is room, commit the
        oldest where there is none. False where there is nothing to do before the next arrival."""
        if len(self._flights) < self._depth:
            plans = [
                (group, plan)
                for group, scheduler in enumerate(self._schedulers)
                if scheduler.has_work and (plan := scheduler.plan(self._now_s)) is not None
            ]
            if plans:
                self._submit(plans)
                if len(self._flights) < self._depth:
                    return True
        if not self._flights:
            return False
        has_room = len(self._free_s) > 1 and len(self._flights) < self._depth
        if has_room and self._next_s < self._flights[0].end_s:
            return False  # an empty stage takes it up at once
        flight = self._flights.popleft()
        self._now_s = max(self._now_s, flight.end_s)
        self._take_due()  # before those whose turn comes by an end
        for group, plan in flight.plans:
            result = self._sample(group, plan)
            self._hear(self._schedulers[group].commit(plan, result))
        return True

    def _submit(self, plans: list[tuple[int, StepPlan]]) -> None:
        shapes = [_NOTHING] * len(self._schedulers)
        for group, plan in plans:
            shapes[group] = plan_shape(plan)
        shape = lock_step(shapes)
        self._now_s += self._cost.host_s(shape)
        begin_s = time_s = max(self._free_s[0], self._now_s)
        stage_s = self._cost.device_s(shape) / len(self._free_s)
        for stage, free_s in enumerate(self._free_s):
            time_s = self._free_s[stage] = max(time_s, free_s) + stage_s
        self._flights.append(_Flight(plans, time_s))
        self._note(shape, begin_s)

    def _note(self, shape: StepShape, begin_s: float) -> None:
        line, schedulers = self._timeline, self._schedulers
        line.begin_s.append(begin_s)
        line.end_s.append(self._free_s[0])
        line.num_tokens.append(shape.num_tokens)
        line.prefill_tokens.append(shape.prefill_tokens)
        line.num_sequences.append(shape.num_sequences)
        line.running.append(sum(one.num_running for one in schedulers))
        line.waiting.append(sum(one.num_waiting for one in schedulers))
        line.kv_usage.append(sum(one.kv_usage for one in schedulers) / len(schedulers))

    def _sample(self, group: int, plan: StepPlan) -> StepResult:
        """What the entries that sample give: each the token of its request's answer, and once more
        for each of its drafts before the first that is wrong."""
        answers, chance = self._answers[group], self._deployment.draft_acceptance
        for dropped in plan.dropped:
            answers.pop(dropped, None)
        tokens: dict[int, tuple[int, ...]] = {}
        drafts: dict[int, tuple[int, ...]] = {}
        for id, _, _, _, samples, proposed, admission, _ in plan.entries:
            if admission is not None:
                answers[id] = (admission.seed,)
            if samples:
                tokens[id] = answers[id]
            if samples and plan.num_drafts:
                wrong = (i for i in range(len(proposed)) if self._luck.random() >= chance)
                tokens[id] *= 1 + next(wrong, len(proposed))
                drafts[id] = answers[id] * plan.num_drafts
        return StepResult(plan.step, tokens, drafts)

    def _hear(self, events: Sequence[TokenEvent]) -> None:
        now_s = self._now_s
        for event in events:
            sent = self._sent[event.id]
            sent.times_s.append(now_s)
            sent.num_tokens += len(event.token_ids)
            if event.queued_s is not None:
                sent.started_s = sent.sent_s + event.queued_s
            if event.finish_reason is not None:
                index = int(event.id)
                del self._sent[event.id]
                asked = self._requests[index]
                self._loads[sent.group] -= asked.prompt_len + asked.output_len
                self._end(index, sent, now_s)
                self._let_go()
