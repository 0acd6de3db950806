"""Which tokens a step yields: rows that sample, drafts that stand, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from fathom.core.types import TokenLogprobs
from fathom.ops.api import Backend
from fathom.ops.comm import Communicator
from fathom.ops.sampling import LogitEdits, SamplingRows
from fathom.runtime.sampler import (
    SampleRow,
    has_penalties,
    logit_edits,
    raw_logprobs,
    sample_tokens,
    sampling_rows,
)
from fathom.runtime.sequences import Segment


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The rows of a step that yield tokens, and how: all that is known before the step runs.

    `rows` [R] of the hidden states, None for all of them; `wanted` are those of the logits whose
    log-probabilities are asked for, each with how many others'. `is_edited`: logits may have to be
    changed first, by what the steps before have sampled.
    """

    segments: tuple[Segment, ...]
    rows: torch.Tensor | None
    draws: SamplingRows
    is_edited: bool
    wanted: tuple[tuple[int, int], ...]


class Chooser:
    """Chooses the tokens of a rank.

    Of several ranks the first one samples, and the others take its tokens. Were each to sample for
    itself, a difference in one bit of the gathered logits or in the order of a parallel sum could
    part them for ever, without a sign; and all but one would do work for nothing.
    """

    def __init__(self, ops: Backend, comm: Communicator, device: torch.device) -> None:
        self._ops, self._comm, self._device = ops, comm, device

    def rows_of(self, segments: Sequence[Segment], num_rows: int) -> SampledRows | None:
        """The rows of a step of `num_rows` rows that yield tokens; None where none does."""
        sampling = tuple(segment for segment in segments if segment.entry.samples)
        rows: list[int] = []
        drawn: list[SampleRow] = []
        wanted: list[tuple[int, int]] = []
        for segment in sampling:
            admission = segment.state.admission
            for position, row in enumerate(segment.sample_rows, start=segment.num_outputs):
                if admission.sampling.logprobs is not None:
                    wanted.append((len(rows), admission.sampling.logprobs))
                rows.append(row)
                drawn.append(SampleRow(admission.sampling, admission.seed, position))
        if not rows:
            return None
        return SampledRows(
            sampling,
            None if len(rows) == num_rows else self._index(rows),
            sampling_rows(drawn, self._device),
            any(map(_is_edited, sampling)),
            tuple(wanted),
        )

    def choose(
        self, sampled: SampledRows, logits: torch.Tensor
    ) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[TokenLogprobs, ...]]]:
        """Accepted tokens, and log-probabilities where asked, by sequence id. The tokens join
        their sequences. `logits` [R, V] float32 of the sampled rows are overwritten."""
        segments, wanted = sampled.segments, [row for row, _ in sampled.wanted]
        raw = logits[self._index(wanted)] if wanted else None
        if self._comm.rank == 0:
            edits = self._edits(segments, logits.shape[1]) if sampled.is_edited else None
            chosen = sample_tokens(self._ops, logits, sampled.draws, edits)
        else:
            chosen = torch.zeros(len(logits), dtype=torch.int64, device=self._device)
        chosen = self.agree(chosen)
        host = chosen.tolist()
        scores: Iterator[TokenLogprobs] = iter(())
        if raw is not None and self._comm.rank == 0:
            tops = [num_top for _, num_top in sampled.wanted]
            scores = iter(raw_logprobs(self._ops, raw, [host[i] for i in wanted], tops))
        tokens: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        for segment, accepted in zip(segments, self._accepted(segments, chosen, host), strict=True):
            tokens[segment.entry.id] = accepted
            segment.state.token_ids[segment.span.start + segment.num_known :] = accepted
            if segment.state.admission.sampling.logprobs is not None:
                own = tuple(islice(scores, 1 + len(segment.entry.drafts)))
                logprobs[segment.entry.id] = own[: len(accepted)]
        return tokens, logprobs

    def agree(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first rank's `tokens` [R] on every rank."""
        if self._comm.world_size == 1:
            return tokens
        return self._comm.all_gather(tokens, 0)[: len(tokens)]

    def _edits(self, segments: Sequence[Segment], vocab_size: int) -> LogitEdits | None:
        """Masks are read here: a device that works by itself is still at the logits."""
        rows = [row for segment in segments for row in _sample_rows(segment, vocab_size)]
        return logit_edits(rows, vocab_size, self._device)

    def _accepted(
        self, segments: Sequence[Segment], chosen: torch.Tensor, host: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """The samples of each segment that stand: 1, and 1 more for each draft that was right."""
        width = max(len(segment.entry.drafts) for segment in segments)
        if width == 0:
            return [(token,) for token in host]
        num_drafts = torch.tensor([len(segment.entry.drafts) for segment in segments])
        padded = [(*s.entry.drafts, *[-1] * (width - len(s.entry.drafts))) for s in segments]
        starts = (num_drafts + 1).cumsum(0) - num_drafts - 1
        # Columns past a segment's own rows hold other segments' samples; `verify` stops before.
        columns = (starts[:, None] + torch.arange(width + 1)).clamp(max=len(chosen) - 1)
        counts = self._ops.verify(
            chosen[columns.to(self._device)], self._index(padded), num_drafts.to(self._device)
        )
        return [
            tuple(host[start : start + count])
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
        ]

    def _index(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _is_edited(segment: Segment) -> bool:
    """Whether the logits of a segment's rows may be changed before one is chosen."""
    sampling = segment.state.admission.sampling
    return (
        segment.entry.mask is not None
        or segment.num_outputs < sampling.min_tokens
        or bool(sampling.logit_bias or sampling.bad_token_ids)
        or sampling.allowed_token_ids is not None
        or sampling.reasoning_limit is not None
        or has_penalties(sampling)
    )


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
    if limit is not None and segment.num_outputs + len(masks) > limit.num_tokens:
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
        position = segment.num_outputs + i
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
