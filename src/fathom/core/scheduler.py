"""The scheduler: which tokens run in the next step. The heart of the system, and pure.

Every step is planned the same way, under one budget of tokens:

    1. running sequences one token behind (decode, with their drafts), in policy order;
       one that lacks a page takes it from the last in the order (preemption by recomputation);
    2. running sequences further behind (prefill chunks) share what is left of the budget;
    3. waiting sequences are admitted, in policy order, while budget and pages last; those whose
       prefix a running sequence is computing wait until it is there.

So decoding never waits for prefill, and the first in the order always makes progress.

Run-ahead: with plan N in flight, plan N + 1 may name a token that N is still sampling
(`tokens` None). What was computed past the end of a sequence is discarded at commit.

Invariants, asserted here or by the tests:
- a step can hold every running sequence, drafts and all (`_max_running`);
- a page changes owner only while no plan in flight mentions the sequence that held it, so a
  preemption may have to wait for a commit; until then nothing behind the needy one is planned;
- plans are committed in the order in which they were made.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter

from fathom.core.admission import Progress, token_limit
from fathom.core.constraint import Constraint
from fathom.core.executor import Capacity
from fathom.core.kv import KvSpace
from fathom.core.loop_guard import LoopLimits
from fathom.core.policy import order_key
from fathom.core.sequence import Sequence, Status
from fathom.core.types import (
    Admission,
    CoreStats,
    PlanEntry,
    Request,
    StepPlan,
    StepResult,
    TokenEvent,
)
from fathom.errors import ConfigError, OverloadedError, RequestError

_policy_key = attrgetter("key")
# Waiting sequences that others may pass in one plan: each is looked up in the prefix tree again.
_MAX_PASSED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Settings of the scheduler, all resolved.

    `max_model_len` tokens of prompt and answer; `max_queued` waiting requests; `num_drafts` tokens
    proposed per step and sequence; `run_ahead`: plan with tokens that are still on the device.
    """

    max_model_len: int
    max_queued: int = 1024
    num_drafts: int = 0
    run_ahead: bool = True
    prefix_cache: bool = True
    loops: LoopLimits = field(default_factory=LoopLimits)


@dataclass(slots=True)
class _Step:
    """A plan being made: its entries, and the tokens that still fit."""

    budget: int
    entries: list[PlanEntry] = field(default_factory=list)
    prefills: list[Sequence] = field(default_factory=list)
    is_short_of_pages: bool = False


class Scheduler:
    """Turns requests into step plans, and step results into token events."""

    def __init__(self, config: SchedulerConfig, capacity: Capacity) -> None:
        tokens_each = 1 + config.num_drafts
        if capacity.max_batch_tokens < tokens_each:
            raise ConfigError(
                "--max-num-batched-tokens",
                found=str(capacity.max_batch_tokens),
                wanted=f"at least {tokens_each}: one token and {config.num_drafts} drafts",
            )
        self._config, self._capacity = config, capacity
        self._max_running = min(capacity.max_sequences, capacity.max_batch_tokens // tokens_each)
        self._kv = KvSpace(capacity.num_pages, capacity.page_size, prefix_cache=config.prefix_cache)
        self._waiting: list[Sequence] = []  # both in policy order
        self._running: list[Sequence] = []
        self._sequences: dict[int, Sequence] = {}  # also the finished that are still in flight
        self._ids: dict[str, int] = {}  # of requests that are not finished
        self._dropped: list[int] = []  # the workers do not know yet
        self._progress = Progress()
        self._num_added = 0
        self._step = 0
        self._committed_step = 0
        self._counts: Counter[str] = Counter()

    # Requests in

    def add(self, request: Request, now: float, constraint: Constraint | None = None) -> None:
        """Queue a request.

        Raises: RequestError and ContextLengthError for one that can never run, OverloadedError
        where the queue is full.
        """
        if request.id in self._ids:
            raise RequestError("request id is in use", param="id", found=repr(request.id))
        limit = token_limit(
            request,
            max_model_len=self._config.max_model_len,
            pool_tokens=self._kv.num_pages * self._kv.page_size,
        )
        num_waiting = len(self._waiting)
        if num_waiting >= self._config.max_queued:
            raise OverloadedError(
                "the queue is full",
                retry_after_s=self._progress.retry_after_s(num_waiting, now),
                found=f"{num_waiting} requests waiting",
                fix="try again later",
            )
        sequence = Sequence(
            self._num_added,
            request,
            order_key(request, self._num_added),
            limit=limit,
            # Drafts and masks of the next step follow from the tokens of this one.
            runs_ahead=self._config.run_ahead and not self._config.num_drafts and not constraint,
            constraint=constraint,
            loops=self._config.loops,
        )
        self._counts["forced_tokens"] += sequence.begin()
        self._num_added += 1
        self._sequences[sequence.id] = sequence
        self._ids[request.id] = sequence.id
        insort(self._waiting, sequence, key=_policy_key)

    def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses."""
        self._kv.flush()

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request wherever it stands; gives its last event, None where it had ended."""
        if request_id not in self._ids:
            return None
        sequence = self._sequences[self._ids[request_id]]
        self._finish(sequence)
        return TokenEvent(request_id, finish_reason="abort", num_cached=sequence.num_cached)

    def fail_all(self, error: str) -> list[TokenEvent]:
        """End every request with `error`."""
        events = []
        for request_id, sequence_id in list(self._ids.items()):
            sequence = self._sequences[sequence_id]
            self._finish(sequence)
            events.append(
                TokenEvent(
                    request_id,
                    finish_reason="error",
                    num_cached=sequence.num_cached,
                    error=error,
                )
            )
        return events

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended yet."""
        return bool(self._ids)

    # Plans out

    def plan(self, now: float) -> StepPlan | None:
        """The next step; None where nothing can be planned before a commit."""
        step = _Step(self._capacity.max_batch_tokens)
        self._plan_decodes(step)
        for sequence in step.prefills:
            if step.budget:
                self._plan_chunk(step, sequence)
        if not step.is_short_of_pages:
            self._admit(step, now)
        if not step.entries:
            return None
        self._step += 1
        self._counts["computed_tokens"] += self._capacity.max_batch_tokens - step.budget
        dropped, self._dropped = tuple(self._dropped), []
        return StepPlan(self._step, tuple(step.entries), dropped, self._config.num_drafts)

    def _plan_decodes(self, step: _Step) -> None:
        """One token, and drafts, for each sequence that is one behind; lists those further back."""
        running, page_size = self._running, self._kv.page_size
        index = 0
        while index < len(running):  # which preemption shortens from its end
            sequence = running[index]
            index += 1
            num_known, pending = len(sequence.tokens), sequence.pending
            start = sequence.computed
            if num_known + pending - start > 1:
                # Tokens that a grammar forced may lack pages: taken here, in the order.
                if num_known > len(sequence.pages) * page_size:
                    grown = self._grow(sequence, num_known)
                    if grown is None:
                        step.is_short_of_pages = sequence.status is Status.RUNNING
                        break
                    sequence.untold_pages = grown
                step.prefills.append(sequence)
                continue
            # Never past the limit, and only ahead of tokens that nothing else depends on.
            if pending and not (sequence.runs_ahead and num_known + pending < sequence.limit):
                continue
            drafts: tuple[int, ...] = ()
            mask = None
            if sequence.drafts or sequence.constraint is not None:
                drafts, mask = sequence.masked_drafts()
            end = start + 1 + len(drafts)
            new_pages: tuple[int, ...] = ()
            if end > len(sequence.pages) * page_size:
                grown = self._grow(sequence, end)
                if grown is None:
                    step.is_short_of_pages = sequence.status is Status.RUNNING
                    break
                new_pages = grown
            tokens = None if pending else (sequence.tokens[-1],)
            step.entries.append(
                PlanEntry(sequence.id, start, tokens, new_pages, True, drafts, None, mask)
            )
            step.budget -= end - start
            sequence.computed = end
            sequence.pending += 1
            sequence.in_flight += 1

    def _plan_chunk(
        self,
        step: _Step,
        sequence: Sequence,
        admission: Admission | None = None,
    ) -> None:
        """As many known tokens as the budget allows; the last known one also samples."""
        start, num_known = sequence.computed, len(sequence.tokens)
        end = min(num_known, start + step.budget)
        samples = end == num_known
        mask = None
        if samples and sequence.constraint is not None:
            mask = sequence.constraint.mask(())
        new_pages, sequence.untold_pages = sequence.untold_pages, ()
        tokens = tuple(sequence.tokens[start:end])
        step.entries.append(
            PlanEntry(sequence.id, start, tokens, new_pages, samples, (), admission, mask)
        )
        step.budget -= end - start
        sequence.computed = end
        sequence.pending += samples
        sequence.in_flight += 1

    def _admit(self, step: _Step, now: float) -> None:
        """Start waiting sequences, in order, while they fit.

        A page is left for each one that runs, so that they can go on for a while: otherwise the
        newcomer would be preempted at once. Alone, a sequence may take the whole pool. One whose
        prefix a running sequence is about to compute waits for that, and lets others pass.
        """
        place = 0
        while (
            place < min(len(self._waiting), _MAX_PASSED)
            and step.budget
            and len(self._running) < self._max_running
        ):
            sequence = self._waiting[place]
            if self._kv.is_promised(sequence):
                place += 1
                continue
            if not self._kv.open(sequence, reserve=len(self._running)):
                return
            self._waiting.pop(place)
            insort(self._running, sequence, key=_policy_key)
            sequence.status = Status.RUNNING
            if sequence.queued_s is None:
                self._record_start(sequence, now)
            sequence.untold_pages = tuple(sequence.pages)
            self._plan_chunk(step, sequence, sequence.admission())

    def _record_start(self, sequence: Sequence, now: float) -> None:
        """Note the first admission of a sequence; those after a preemption are not news."""
        sequence.queued_s = now - sequence.request.arrival_s
        sequence.num_cached = sequence.computed
        self._progress.record(now)
        self._counts["prompt_tokens"] += sequence.num_prompt
        if self._config.prefix_cache:
            self._counts["prefix_queries"] += sequence.num_prompt
            self._counts["prefix_hits"] += sequence.num_cached

    def _grow(self, sequence: Sequence, num_positions: int) -> tuple[int, ...] | None:
        """New pages for a running sequence, taken from the last in the order if need be.

        None: not in this plan, because the victim is in flight, or was the sequence itself.
        """
        while (pages := self._kv.grow(sequence, num_positions)) is None:
            victim = self._running[-1]
            if victim.in_flight:
                return None
            self._preempt(victim)
            if victim is sequence:
                return None
        return pages

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to the queue; it will compute its tokens again."""
        self._running.pop()  # it is the last one
        self._dropped.append(sequence.id)
        self._kv.release(sequence)
        sequence.rewind()
        insort(self._waiting, sequence, key=_policy_key)
        self._counts["preemptions"] += 1

    # Results in

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Take in the result of the oldest plan that is not committed; gives the news."""
        assert plan.step == result.step == self._committed_step + 1, "plans commit in order"
        self._committed_step = plan.step
        events = []
        for entry in plan.entries:
            sequence = self._sequences[entry.id]
            sequence.in_flight -= 1
            if sequence.status is Status.FINISHED:  # it ended while this step ran
                if not sequence.in_flight:
                    self._forget(sequence)
                continue
            rows = result.prompt_logprobs.get(entry.id)
            if rows and sequence.num_told == sequence.num_prompt:
                sequence.prompt_logprobs += rows
            if entry.samples:
                events.append(self._commit_tokens(sequence, entry, result))
            else:
                self._kv.publish(sequence, entry.start + entry.num_tokens)
        self._counts["generated_tokens"] += sum(len(event.token_ids) for event in events)
        return events

    def _commit_tokens(
        self, sequence: Sequence, entry: PlanEntry, result: StepResult
    ) -> TokenEvent:
        """Append what an entry sampled, correct what drafts promised, and end where it ends."""
        accepted = result.tokens[entry.id]
        is_first = sequence.num_told == sequence.num_prompt
        finish_reason = sequence.extend(accepted)
        num_committed = entry.start + entry.num_tokens
        sequence.pending -= 1
        if entry.drafts:
            num_refused = len(entry.drafts) + 1 - len(accepted)
            num_committed -= num_refused
            sequence.computed -= num_refused
            self._counts["draft_rounds"] += 1
            self._counts["draft_tokens"] += len(entry.drafts)
            self._counts["accepted_tokens"] += len(accepted) - 1
        sequence.drafts = result.drafts.get(entry.id, ())
        if finish_reason is None and sequence.constraint is not None:
            finish_reason, num_forced = sequence.jump()
            if num_forced:
                self._counts["forced_tokens"] += num_forced
                sequence.drafts = ()  # they continue what was sampled
        if num_committed >= (len(sequence.path) + 1) * self._kv.page_size:
            self._kv.publish(sequence, min(num_committed, len(sequence.tokens)))
        if finish_reason is not None:
            self._finish(sequence)
        told = tuple(sequence.tokens[sequence.num_told :])
        sequence.num_told = len(sequence.tokens)
        logprobs = result.logprobs.get(entry.id, ())
        return TokenEvent(
            sequence.request.id,
            told,
            logprobs[: len(told)] if logprobs else (),
            tuple(sequence.prompt_logprobs) if is_first else (),
            finish_reason,
            sequence.stop_token_id,
            sequence.num_cached,
            sequence.queued_s if is_first else None,
            sequence.constraint.error if sequence.constraint is not None else "",
            blames_request=finish_reason == "error",
        )

    def _finish(self, sequence: Sequence) -> None:
        """Take a sequence out of the order; its pages follow once no plan mentions it."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            self._dropped.append(sequence.id)
        else:
            self._waiting.remove(sequence)
        sequence.status = Status.FINISHED
        del self._ids[sequence.request.id]
        if not sequence.in_flight:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._kv.release(sequence)
        del self._sequences[sequence.id]

    # Views

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the pages that sequences hold; what is only cached is free."""
        return 1 - self._kv.num_available / self._kv.num_pages

    def stats(self) -> CoreStats:
        """Gauges of now and counters since the start."""
        return CoreStats(
            running=self.num_running,
            waiting=self.num_waiting,
            kv_usage=self.kv_usage,
            steps=self._committed_step,
            **self._counts,
        )
