"""Grammars of the engine's process, compiled in a thread while the engine steps.

They have been checked in a process that may be killed (`grammars.py`), so this ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from fathom.core.constraint import Constraint
from fathom.engine.messages import Add
from fathom.errors import EngineError, FathomError
from fathom.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fathom.text.grammar.engine import GrammarEngine

Made = Sequence[Constraint | None]


class ConstraintMaker:
    """Requests with a grammar, until their automata are there. `load_tokenizer` runs once, in the
    thread, when the first of them comes."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer]) -> None:
        self._load_tokenizer = load_tokenizer
        self._engine: GrammarEngine | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._waiting: deque[tuple[Add, Future[Made]]] = deque()
        self._cancelled: set[str] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its automata."""
        return bool(self._waiting)

    def make(self, message: Add) -> None:
        """Begin to compile a request's grammar."""
        future = self._thread.submit(self._make, message.grammar, len(message.requests))
        self._waiting.append((message, future))

    def _make(self, grammar: str, count: int) -> Made:
        if self._engine is None:
            from fathom.text.grammar.engine import GrammarEngine

            self._engine = GrammarEngine(self._load_tokenizer())
        return [self._engine.constraint(grammar) for _ in range(count)]

    def cancel(self, ids: Sequence[str]) -> None:
        """Forget sequences that still wait here."""
        waiting = {request.id for message, _ in self._waiting for request in message.requests}
        self._cancelled |= waiting & set(ids)

    def ready(self) -> Iterator[tuple[Add, Made | FathomError]]:
        """Requests whose automata are there, in the order in which they came, or why they are not;
        less the cancelled sequences."""
        while self._waiting and self._waiting[0][1].done():
            message, future = self._waiting.popleft()
            ids = {request.id for request in message.requests}
            gone = self._cancelled & ids
            self._cancelled -= ids
            error = future.exception()
            if error is not None:
                told = error if isinstance(error, FathomError) else EngineError(f"grammar: {error}")
                yield message, told
                continue
            pairs = list(zip(message.requests, future.result(), strict=True))
            kept = [pair for pair in pairs if pair[0].id not in gone]
            yield Add(tuple(request for request, _ in kept)), [made for _, made in kept]
