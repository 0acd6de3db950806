"""The consumer's side of an answer that comes as text and not as tokens."""

from __future__ import annotations

import time

from fathom.core.types import FinishReason, SamplingParams, TokenEvent
from fathom.engine.streams import AnswerStream
from fathom.engine.timing import Observer, RequestTimer
from fathom.text.delta import Delta

_ENDS: dict[str, FinishReason] = {"length": "length", "repetition": "repetition"}


class DeltaStream(AnswerStream[Delta]):
    """What `RequestStream` is, for answers that come as deltas and not as tokens. A piece of an
    answer counts as a token in the metrics: nothing else is known while it comes."""

    def __init__(self, sampling: SamplingParams, arrival_s: float, observer: Observer) -> None:
        super().__init__(RequestTimer(sampling, 0, arrival_s, observer))
        self._open = set(range(sampling.n))

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
        self._put(delta)

    async def next(self) -> tuple[Delta, ...]:
        """What came since the last call. Raises: the error that `fail` was given."""
        news = await self._take()
        self._open -= {delta.index for delta in news if delta.finish_reason is not None}
        return tuple(news)
