"""The consumer's side of an answer that comes as text and not as tokens."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from fathom.core.types import FinishReason, SamplingParams, TokenEvent
from fathom.engine.timing import Observer, RequestTimer
from fathom.errors import FathomError
from fathom.text.delta import Delta

_ENDS: dict[str, FinishReason] = {"length": "length", "repetition": "repetition"}


class DeltaStream:
    """What `RequestStream` is, for answers that come as deltas and not as tokens. A piece of an
    answer counts as a token in the metrics: nothing else is known while it comes."""

    def __init__(self, sampling: SamplingParams, arrival_s: float, observer: Observer) -> None:
        self._open = set(range(sampling.n))
        self._timer = RequestTimer(sampling, 0, arrival_s, observer)
        self._news: deque[Delta] = deque()
        self._has_news = asyncio.Event()
        self._error: FathomError | None = None
        self._was_refused = False

    @property
    def is_finished(self) -> bool:
        """Whether every choice has given its last delta."""
        return not self._open and not self._news

    def give(self, delta: Delta) -> None:
        """What came."""
        reason = delta.finish_reason
        end = None if reason is None else _ENDS.get(reason, "stop")
        event = TokenEvent(id="", token_ids=(0,), finish_reason=end, queued_s=0.0)
        self._timer.record(delta.index, event, time.monotonic())
        self._news.append(delta)
        self._has_news.set()

    def fail(self, error: FathomError) -> None:
        """Nothing more comes: `next` raises `error` after what came before."""
        self._error = error
        self._timer.failed()
        self._has_news.set()

    def refuse(self, error: FathomError) -> None:
        """The request was not taken: the same, and nothing is recorded."""
        self._was_refused = True
        self.fail(error)

    async def next(self) -> tuple[Delta, ...]:
        """What came since the last call. Raises: the error that `fail` was given."""
        while not self._news:
            if self._error is not None:
                raise self._error
            self._has_news.clear()
            await self._has_news.wait()
        news = tuple(self._news)
        self._news.clear()
        self._open -= {delta.index for delta in news if delta.finish_reason is not None}
        return news

    def end(self, now_s: float) -> None:
        """The consumer is done or gone."""
        if not self._was_refused:
            self._timer.end(now_s)
