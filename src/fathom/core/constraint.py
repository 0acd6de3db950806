"""The constraint seam: what restricts a sequence's next tokens (a grammar, a schema)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fathom.core.types import Mask


class Constraint(Protocol):
    """An automaton over tokens, owned by one sequence.

    The scheduler calls `accept` only when no step in flight holds a mask of it, so that a mask may
    be computed while the step runs.
    """

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of the answer can follow."""
        ...

    @property
    def error(self) -> str:
        """Why it can say nothing more, such as a state too large; empty while it can."""
        ...

    def mask(self, drafts: Sequence[int]) -> Mask:
        """The tokens allowed next, and those allowed after each of `drafts`, a row for each."""
        ...

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may follow, one after the other."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by a token that was sampled under `mask`, or was forced."""
        ...

    def forced(self) -> tuple[int, ...]:
        """Tokens that must follow whatever the model says, as it would tokenise their text."""
        ...
