"""Runs step plans on one rank: update, forward, sample, verify, draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from fathom.core.types import StepPlan, StepResult, TokenLogprobs
from fathom.ops.api import Backend
from fathom.ops.batch import PagedBatch
from fathom.ops.comm import Communicator
from fathom.runtime.batch import PageTable
from fathom.runtime.drafts import Drafter, DraftModel
from fathom.runtime.sampler import SampleRow, has_penalties, raw_logprobs, sample_tokens
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


class Worker:
    """One rank. Its state changes only in `execute`, which is called from one thread.

    Of several ranks the first one samples, and the others take its tokens. Were each to sample for
    itself, a difference in one bit of the gathered logits or in the order of a parallel sum could
    part them for ever, without a sign; and all but one would do work for nothing.
    """

    def __init__(self, parts: WorkerParts) -> None:
        self._model, self._ops, self._comm = parts.model, parts.ops, parts.comm
        self._kv_cache, self._clock = parts.kv_cache, parts.clock
        self._pages = PageTable(parts.page_size)
        self._sequences = Sequences(self._pages)
        self._drafter = None
        if parts.draft_model is not None:
            self._drafter = Drafter(
                parts.draft_model,
                parts.kv_cache,
                self._pages,
                max_position=parts.max_position,
                agree=self._agree,
            )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises: EngineError where the plan contradicts the ones before it."""
        began = self._clock()
        segments = self._sequences.update(plan)
        if not segments:
            return StepResult(plan.step, {}, elapsed_s=self._clock() - began)
        token_ids, batch = self._pages.batch(
            [token for segment in segments for token in segment.token_ids],
            [segment.span for segment in segments],
            self._kv_cache.device,
        )
        hidden = self._model.forward(token_ids, batch, self._kv_cache)
        prompt_logprobs = {
            segment.entry.id: rows
            for segment in segments
            if (rows := tuple(self._score_prompt(segment, hidden)))
        }
        sampling = [segment for segment in segments if segment.entry.samples]
        tokens, logprobs = self._sample(sampling, hidden) if sampling else ({}, {})
        for segment in sampling:
            segment.state.token_ids[segment.span.start + segment.num_known :] = tokens[
                segment.entry.id
            ]
        drafts = {}
        if self._drafter is not None:
            drafts = self._drafter.propose(segments, hidden, tokens, plan.num_drafts)
        self._keep_hidden(segments, hidden)
        return StepResult(
            plan.step, tokens, drafts, logprobs, prompt_logprobs, self._clock() - began
        )

    def _sample(
        self, segments: Sequence[Segment], hidden: torch.Tensor
    ) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[TokenLogprobs, ...]]]:
        """Accepted tokens, and log-probabilities where asked, by sequence id."""
        index = [row for segment in segments for row in segment.sample_rows]
        logits = self._model.logits(hidden[torch.tensor(index, device=hidden.device)])
        # Masks are read here: a device that works by itself is still at the logits.
        rows = [row for segment in segments for row in _sample_rows(segment, logits.shape[1])]
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        raw = logits[torch.tensor(wanted, device=logits.device)] if wanted else None
        if self._comm.rank == 0:
            chosen = sample_tokens(self._ops, logits, rows)
        else:
            chosen = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
        chosen = self._agree(chosen)
        host = chosen.tolist()
        scores: Iterator[TokenLogprobs] = iter(())
        if raw is not None and self._comm.rank == 0:
            tops = [rows[i].sampling.logprobs or 0 for i in wanted]
            scores = iter(raw_logprobs(self._ops, raw, [host[i] for i in wanted], tops))
        tokens: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        remaining = iter(host)
        for segment, count in zip(segments, self._count_accepted(segments, chosen), strict=True):
            num_rows = len(segment.sample_rows)
            tokens[segment.entry.id] = tuple(islice(remaining, num_rows))[:count]
            if segment.state.admission.sampling.logprobs is not None:
                logprobs[segment.entry.id] = tuple(islice(scores, num_rows))[:count]
        return tokens, logprobs

    def _count_accepted(self, segments: Sequence[Segment], chosen: torch.Tensor) -> list[int]:
        """How many of each segment's samples stand: 1, and 1 more for each draft that was right."""
        width = max(len(segment.entry.drafts) for segment in segments)
        if width == 0:
            return [1] * len(segments)
        num_drafts = torch.tensor([len(segment.entry.drafts) for segment in segments])
        padded = [(*s.entry.drafts, *[-1] * (width - len(s.entry.drafts))) for s in segments]
        starts = (num_drafts + 1).cumsum(0) - num_drafts - 1
        # Columns past a segment's own rows hold other segments' samples; `verify` stops before.
        columns = (starts[:, None] + torch.arange(width + 1)).clamp(max=len(chosen) - 1)
        device = chosen.device
        counts = self._ops.verify(
            chosen[columns.to(device)], torch.tensor(padded, device=device), num_drafts.to(device)
        )
        accepted: list[int] = counts.tolist()
        return accepted

    def _score_prompt(self, segment: Segment, hidden: torch.Tensor) -> Iterator[TokenLogprobs]:
        """Log-probabilities of the prompt tokens of this chunk, each from the position before."""
        admission, state = segment.state.admission, segment.state
        num_top = admission.sampling.prompt_logprobs
        first, end = segment.span.start, segment.span.start + segment.span.length
        end = min(end, admission.num_prompt)
        if num_top is None or end <= first:
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
            state, wants = segment.state, self._drafter is not None
            wants |= state.admission.sampling.prompt_logprobs is not None
            state.last_hidden = None
            if wants and not segment.entry.samples:
                # A copy: a view would keep the whole step's states alive.
                last = segment.first_row + len(segment.token_ids) - 1
                state.last_hidden = hidden[last].clone()

    def _agree(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first rank's `tokens` [R] on every rank."""
        if self._comm.world_size == 1:
            return tokens
        return self._comm.all_gather(tokens, 0)[: len(tokens)]


def _sample_rows(segment: Segment, vocab_size: int) -> Iterator[SampleRow]:
    """What the segment's rows ask for: each sees the drafts before it as if accepted, for it is
    only looked at if they are."""
    entry, admission = segment.entry, segment.state.admission
    sampling = admission.sampling
    masks: list[bytes | None] = [None] * len(segment.sample_rows)
    if entry.mask is not None:
        bits = entry.mask.read()
        size = len(bits) // len(masks)
        masks = [bits[i * size : (i + 1) * size] for i in range(len(masks))]
    limit = sampling.reasoning_limit
    if limit is not None and segment.state.num_outputs + len(masks) > limit.num_tokens:
        outputs = segment.state.token_ids[admission.num_prompt :]
        for i in range(len(masks)):
            if limit.is_reached([*outputs, *entry.drafts[:i]]):
                masks[i] = _only(limit.end_id, vocab_size)
    counts = segment.state.counts() if has_penalties(sampling) else None
    ends = (*admission.eos_token_ids, *sampling.stop_token_ids)
    tail = _tail(segment) if sampling.bad_token_ids else []
    for i, mask in enumerate(masks):
        if counts is not None and i > 0:
            counts = counts.copy()
            counts[entry.drafts[i - 1]] += 1
        position = segment.state.num_outputs + i
        yield SampleRow(
            sampling=sampling,
            seed=admission.seed,
            position=position,
            counts=counts,
            forbidden=(
                *(ends if position < sampling.min_tokens else ()),
                *_last_of_bad(sampling.bad_token_ids, [*tail, *entry.drafts[:i]]),
            ),
            mask=mask,
        )


def _tail(segment: Segment) -> list[int]:
    """The last outputs, as many as a bad sequence could begin with."""
    admission = segment.state.admission
    longest = max(map(len, admission.sampling.bad_token_ids)) - 1
    ids = segment.state.token_ids
    return ids[max(admission.num_prompt, len(ids) - longest) :]


def _last_of_bad(sequences: tuple[tuple[int, ...], ...], outputs: Sequence[int]) -> Iterator[int]:
    """The tokens that would make a bad sequence whole."""
    for *begin, last in sequences:
        if not begin or list(outputs[-len(begin) :]) == begin:
            yield last


def _only(token_id: int, vocab_size: int) -> bytes:
    """A mask that allows one token."""
    mask = bytearray(-(-vocab_size // 8))
    mask[token_id // 8] = 1 << token_id % 8
    return bytes(mask)
