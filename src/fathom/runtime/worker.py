"""Runs step plans on one rank: update, forward, sample, verify, draft.

What does not wait for the tokens of the step before is made ready while that one still computes:
the batch, the page table, how rows are drawn. What is left then is to put the tokens in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from fathom.core.types import PlanEntry, StepPlan, StepResult, TokenLogprobs
from fathom.ops.api import Backend
from fathom.ops.batch import PagedBatch
from fathom.ops.comm import Communicator
from fathom.runtime.batch import PageTable
from fathom.runtime.chooser import Chooser, SampledRows
from fathom.runtime.drafts import Drafter, DraftModel
from fathom.runtime.sampler import raw_logprobs
from fathom.runtime.sequences import Segment, Sequences

# Prompt positions whose logits are held at once: 64 rows of 129,280 float32 are 33 MB.
_LOGPROB_ROWS = 64


class Model(Protocol):
    """What a worker needs of a model."""

    def forward(
        self, token_ids: torch.Tensor, batch: PagedBatch, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states [T, hidden] after the final norm; writes the step's KV."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] float32, whole on every rank."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """What a worker is made of. `draft_model` None: it never drafts."""

    model: Model
    draft_model: DraftModel | None
    ops: Backend
    comm: Communicator
    kv_cache: torch.Tensor
    page_size: int
    max_position: int
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that is ready, but for the tokens of the `late` segments, at `late_rows`: None where
    those are all. `scored`: segments whose prompts are."""

    plan: StepPlan
    segments: tuple[Segment, ...]
    token_ids: torch.Tensor
    batch: PagedBatch
    late: list[Segment]
    late_rows: torch.Tensor | None
    scored: list[Segment]
    sampled: SampledRows | None


class Worker:
    """One rank.

    Steps are prepared in the order of their plans, by one thread, and run in that order, by one
    thread. Where no tokens are drafted, the next step may be prepared while one runs: preparing
    changes the page table and which sequences there are, running changes their tokens.
    """

    def __init__(self, parts: WorkerParts) -> None:
        self._model, self._ops, self._comm = parts.model, parts.ops, parts.comm
        self._kv_cache, self._clock = parts.kv_cache, parts.clock
        self._device = parts.kv_cache.device
        self._chooser = Chooser(parts.ops, parts.comm, self._device)
        self._pages = PageTable(parts.page_size)
        self._sequences = Sequences(self._pages)
        self._drafter = None
        if parts.draft_model is not None:
            self._drafter = Drafter(
                parts.draft_model,
                parts.kv_cache,
                self._pages,
                max_position=parts.max_position,
                agree=self._chooser.agree,
            )

    def execute(self, plan: StepPlan) -> StepResult:
        """Prepare a step and run it. Raises: EngineError as `prepare`."""
        return self.prepare(plan)()

    @torch.inference_mode()
    def prepare(self, plan: StepPlan) -> Callable[[], StepResult]:
        """What runs the step, once the steps before it have run.

        Raises: EngineError where the plan contradicts the ones before it; so does what is given.
        """
        segments = self._sequences.update(plan)
        if not segments:
            return lambda: StepResult(plan.step, {})
        late = [segment for segment in segments if segment.entry.tokens is None]
        token_ids, batch = self._pages.batch(
            [token for segment in segments for token in _told(segment.entry)],
            [segment.span for segment in segments],
            self._device,
        )
        rows = None
        if len(late) < len(token_ids):
            rows = torch.tensor([segment.first_row for segment in late], device=self._device)
        scored = [segment for segment in segments if _scores_prompt(segment)]
        sampled = self._chooser.rows_of(segments, len(token_ids))
        step = _Step(plan, segments, token_ids, batch, late, rows, scored, sampled)
        return partial(self._run, step)

    @torch.inference_mode()
    def _run(self, step: _Step) -> StepResult:
        began = self._clock()
        segments, sampled = step.segments, step.sampled
        for segment in segments:
            segment.begin()
        token_ids = step.token_ids
        if step.late:
            sampled_ids = [segment.state.token_ids[-1] for segment in step.late]
            last = torch.tensor(sampled_ids, device=self._device)
            if step.late_rows is None:
                token_ids = last
            else:
                token_ids[step.late_rows] = last
        hidden = self._model.forward(token_ids, step.batch, self._kv_cache)
        prompt_logprobs = {
            segment.entry.id: scores
            for segment in step.scored
            if (scores := tuple(self._score_prompt(segment, hidden)))
        }
        tokens: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        if sampled is not None:
            tokens, logprobs = self._chooser.choose(sampled, self._logits(hidden, sampled.rows))
        drafts = {}
        if self._drafter is not None:
            drafts = self._drafter.propose(segments, hidden, tokens, step.plan.num_drafts)
        self._keep_hidden(segments, hidden)
        return StepResult(
            step.plan.step, tokens, drafts, logprobs, prompt_logprobs, self._clock() - began
        )

    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """A function of its own, so that the copy of `rows` is gone when it returns."""
        return self._model.logits(hidden if rows is None else hidden[rows])

    def _score_prompt(self, segment: Segment, hidden: torch.Tensor) -> Iterator[TokenLogprobs]:
        """Log-probabilities of the prompt tokens of this chunk, each from the position before."""
        admission, state = segment.state.admission, segment.state
        num_top = admission.sampling.prompt_logprobs
        assert num_top is not None
        first, end = segment.span.start, segment.span.start + segment.span.length
        end = min(end, admission.num_prompt)
        if end <= first:
            return
        states = hidden[segment.first_row : segment.first_row + end - 1 - first]
        first += 1
        if state.last_hidden is not None:
            states = torch.cat([state.last_hidden[None], states])
            first -= 1
        scored = state.token_ids[first:end]
        for begin in range(0, len(scored), _LOGPROB_ROWS):
            ids = scored[begin : begin + _LOGPROB_ROWS]
            yield from self._score_rows(states[begin : begin + len(ids)], ids, num_top)

    def _score_rows(
        self, states: torch.Tensor, ids: Sequence[int], num_top: int
    ) -> tuple[TokenLogprobs, ...]:
        """A function of its own, so that no logits are alive while the next ones are made."""
        logits = self._model.logits(states)
        if self._comm.rank != 0:
            return ()
        return raw_logprobs(self._ops, logits, ids, [num_top] * len(ids))

    def _keep_hidden(self, segments: Sequence[Segment], hidden: torch.Tensor) -> None:
        """Keep the last hidden state of unfinished prompts: the next token is still to come."""
        for segment in segments:
            state = segment.state
            state.last_hidden = None
            if segment.entry.samples:
                continue
            if self._drafter is not None or _scores_prompt(segment):
                # A copy: a view would keep the whole step's states alive.
                last = segment.first_row + segment.span.length - 1
                state.last_hidden = hidden[last].clone()


def _scores_prompt(segment: Segment) -> bool:
    return segment.state.admission.sampling.prompt_logprobs is not None


def _told(entry: PlanEntry) -> tuple[int, ...]:
    """An entry's tokens as far as its plan tells them, 0 for one that the step before samples."""
    tokens = (0,) if entry.tokens is None else entry.tokens
    return (*tokens, *entry.drafts) if entry.drafts else tokens
