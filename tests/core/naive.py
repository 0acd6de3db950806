"""The naive loop: one request at a time, one plan at a time, no sharing, no scheduler.

What it answers is what every schedule must answer. It decides by itself when a request ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fathom.core.constraint import Constraint
from fathom.core.executor import Capacity
from fathom.core.types import (
    Admission,
    FinishReason,
    Mask,
    MaskRows,
    PlanEntry,
    Request,
    StepPlan,
)
from tests.core.simulated import PseudoModel, SimulatedExecutor


def naive_answer(
    request: Request, model: PseudoModel, max_model_len: int, constraint: Constraint | None = None
) -> tuple[tuple[int, ...], FinishReason]:
    """The tokens that follow the request's prompt, and why they end."""
    sampling = request.sampling
    executor = SimulatedExecutor(Capacity(1, max_model_len + 1, max_model_len, 1, 1), model=model)
    prompt = request.prompt_ids
    admission = Admission((), len(prompt), sampling, request.seed, request.eos_token_ids)
    answer: list[int] = []
    for step in range(1, max_model_len + 1):
        mask = constraint.mask(()) if constraint else None
        if step == 1:
            entry = PlanEntry(0, 0, prompt, (0,), admission=admission, mask=mask)
        else:
            entry = PlanEntry(0, len(prompt) + step - 2, (answer[-1],), mask=mask)
        (token_id,) = executor.submit(StepPlan(step, (entry,))).wait(60).tokens[0]
        answer.append(token_id)
        is_eos = token_id in request.eos_token_ids and not sampling.ignore_eos
        if (is_eos or token_id in sampling.stop_token_ids) and step >= sampling.min_tokens:
            return tuple(answer), "stop"
        if step == sampling.max_tokens or len(prompt) + step == max_model_len:
            return tuple(answer), "length"
        if constraint:
            constraint.accept(token_id)
    raise AssertionError("the loop ends before this")


class Rotating:
    """A constraint for tests: output i must be i modulo `period`, and `forces` says of which i it
    must be the least such token, which then is forced."""

    is_complete, error = False, ""

    def __init__(
        self, vocab_size: int, period: int, forces: Callable[[int], bool] = lambda i: False
    ) -> None:
        self._vocab_size, self._period, self._num_tokens = vocab_size, period, 0
        self._forces = forces

    def _allowed(self, place: int) -> range:
        first = place % self._period
        return range(first, first + 1 if self._forces(place) else self._vocab_size, self._period)

    def mask(self, drafts: Sequence[int]) -> Mask:
        assert self.count_allowed(drafts) == len(drafts)
        rows = b""
        for place in range(self._num_tokens, self._num_tokens + len(drafts) + 1):
            row = bytearray(-(-self._vocab_size // 8))
            for token_id in self._allowed(place):
                row[token_id >> 3] |= 1 << (token_id & 7)
            rows += row
        return MaskRows(rows)

    def count_allowed(self, tokens: Sequence[int]) -> int:
        fits = (token in self._allowed(self._num_tokens + i) for i, token in enumerate(tokens))
        return next((count for count, is_allowed in enumerate(fits) if not is_allowed), len(tokens))

    def accept(self, token_id: int) -> None:
        assert token_id in self._allowed(self._num_tokens)
        self._num_tokens += 1

    def forced(self) -> tuple[int, ...]:
        end = self._num_tokens
        while self._forces(end):
            end += 1
        return tuple(self._allowed(place)[0] for place in range(self._num_tokens, end))
