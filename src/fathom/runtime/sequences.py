"""What a worker remembers of its sequences between steps, kept up to date from each plan's diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fathom.core.types import Admission, PlanEntry, StepPlan
from fathom.errors import EngineError
from fathom.runtime.batch import PageTable, Span


@dataclass(slots=True)
class SequenceState:
    """One sequence: its place in the page table and all its tokens so far, sampled ones too.

    `last_hidden` [hidden] belongs to the last computed position where the token after it was not
    yet known, at the border of a prefill chunk; None where nothing waits for that token.
    """

    row: int
    admission: Admission
    token_ids: list[int]
    last_hidden: torch.Tensor | None = None
    _counts: Counter[int] | None = field(default=None, init=False)
    _num_counted: int = field(default=0, init=False)

    def set_tokens(self, start: int, tokens: Sequence[int]) -> None:
        """State the tokens from position `start` on; what stood there and after is forgotten."""
        if self.token_ids[start:] != list(tokens):
            self._counts = None
            self.token_ids[start:] = tokens

    def counts(self) -> Counter[int]:
        """How often each token occurs in the output, for penalties. Tokens that occur only in the
        prompt are in it with a count of 0 where `repetition_penalty` must see them."""
        num_prompt = self.admission.num_prompt
        if self._counts is None:
            sees_prompt = self.admission.sampling.repetition_penalty != 1.0
            prompt = self.token_ids[:num_prompt] if sees_prompt else ()
            self._counts, self._num_counted = Counter(dict.fromkeys(prompt, 0)), num_prompt
        self._counts.update(self.token_ids[self._num_counted :])
        self._num_counted = len(self.token_ids)
        return self._counts


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry's rows in a step: `span` says which positions, `first_row` where they begin.

    The tokens at the last `entry.drafts` of the positions are guesses.
    """

    entry: PlanEntry
    state: SequenceState
    span: Span
    first_row: int

    @property
    def num_known(self) -> int:
        """Tokens that are no drafts."""
        return self.span.length - len(self.entry.drafts)

    @property
    def num_outputs(self) -> int:
        """Output tokens up to and with the last that is no draft."""
        return self.span.start + self.num_known - self.state.admission.num_prompt

    @property
    def sample_rows(self) -> range:
        """Rows whose logits yield tokens: the last known one's, and the drafts'."""
        if not self.entry.samples:
            return range(0)
        end = self.first_row + self.span.length
        return range(end - 1 - len(self.entry.drafts), end)

    def begin(self) -> None:
        """Take over the entry's tokens, once the steps before this one have run.

        Raises: EngineError where they do not follow from those steps.
        """
        entry, known = self.entry, len(self.state.token_ids)
        if entry.tokens is not None:
            if known < entry.start:
                raise EngineError(
                    f"sequence {entry.id} starts at position {entry.start}",
                    found=f"{known} known tokens",
                    wanted="no gap",
                )
            self.state.set_tokens(entry.start, entry.tokens)
        elif known != entry.start + 1:
            raise EngineError(
                f"sequence {entry.id}: the token at position {entry.start}",
                found=f"{known} known tokens",
                wanted="it to be the last one that was sampled",
            )


class Sequences:
    """The sequences of a worker, by id."""

    def __init__(self, pages: PageTable) -> None:
        self._pages = pages
        self._states: dict[int, SequenceState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def update(self, plan: StepPlan) -> tuple[Segment, ...]:
        """Apply a plan: forget, admit, extend. Gives the rows that the step computes. Tokens are
        left to `Segment.begin`: the step before may still run.

        Raises: EngineError where the plan does not follow from the ones before it.
        """
        for sequence_id in plan.dropped:
            state = self._states.pop(sequence_id, None)
            if state is None:
                raise EngineError(f"sequence {sequence_id}", found="dropped, but not known")
            self._pages.remove(state.row)
        segments: list[Segment] = []
        first_row = 0
        for entry in plan.entries:
            segments.append(self._segment(entry, first_row))
            first_row += segments[-1].span.length
        return tuple(segments)

    def _segment(self, entry: PlanEntry, first_row: int) -> Segment:
        if entry.admission is not None:
            self._admit(entry.id, entry.admission)
        state = self._states.get(entry.id)
        if state is None:
            raise EngineError(f"sequence {entry.id}", found="an entry before its admission")
        self._pages.extend(state.row, entry.new_pages)
        span = Span(state.row, entry.start, entry.num_tokens)
        if span.start + span.length > self._pages.capacity(state.row):
            raise EngineError(
                f"sequence {entry.id}: positions up to {span.start + span.length - 1}",
                found=f"pages for {self._pages.capacity(state.row)}",
            )
        return Segment(entry, state, span, first_row)

    def _admit(self, sequence_id: int, admission: Admission) -> None:
        if sequence_id in self._states:
            raise EngineError(f"sequence {sequence_id}", found="a second admission")
        self._states[sequence_id] = SequenceState(
            row=self._pages.add(), admission=admission, token_ids=list(admission.known_ids)
        )
