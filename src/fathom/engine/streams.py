"""The client's side of one request: events of its sequences in, deltas of its choices out."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from fathom.core.types import Request, TokenEvent
from fathom.engine.requests import GenerateRequest, failure
from fathom.engine.timing import Observer, RequestTimer
from fathom.errors import FathomError
from fathom.text.delta import Delta
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer

NewsT = TypeVar("NewsT")


class AnswerStream(ABC, Generic[NewsT]):
    """What came of one answer for the one consumer that takes it, and then the error that ended it.

    A request that was refused leaves no record.
    """

    def __init__(self, timer: RequestTimer) -> None:
        self._timer = timer
        self._news: list[NewsT] = []
        self._has_news = asyncio.Event()
        self._error: FathomError | None = None
        self._was_refused = False

    @property
    @abstractmethod
    def is_finished(self) -> bool:
        """Whether every choice has given its last delta."""

    def fail(self, error: FathomError) -> None:
        """Nothing will come any more: `next` raises `error` when it has given what came before."""
        if self._error is None and not self.is_finished:
            self._error = error
            self._timer.failed()
            self._has_news.set()

    def refuse(self, error: FathomError) -> None:
        """The request was not taken: `next` raises `error`, and nothing is recorded."""
        self._was_refused = True
        self.fail(error)

    def end(self, now_s: float) -> None:
        """The consumer is done or gone: close the record."""
        if not self._was_refused:
            self._timer.end(now_s)

    def _put(self, news: NewsT) -> None:
        self._news.append(news)
        self._has_news.set()

    async def _take(self) -> list[NewsT]:
        """Everything that came since the last call, at least one. Raises: the error of `fail`."""
        while not self._news:
            if self._error is not None:
                raise self._error
            self._has_news.clear()
            await self._has_news.wait()
        news, self._news = self._news, []
        return news


class RequestStream(AnswerStream[TokenEvent]):
    """One request. The event loop feeds it; one consumer takes deltas out of it.

    Text is made when the consumer asks for it, so a slow consumer gets the tokens of many steps
    in one delta and slows nobody else. `cancel` is called with the ids of sequences that end
    before the engine knows of it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        sequences: tuple[Request, ...],
        tokenizer: Tokenizer,
        *,
        observer: Observer,
        cancel: Callable[[tuple[str, ...]], None],
    ) -> None:
        super().__init__(
            RequestTimer(
                request.sampling, len(request.prompt_ids), sequences[0].arrival_s, observer
            )
        )
        self._running = {sequence.id: index for index, sequence in enumerate(sequences)}
        self._outputs = [
            OutputStream(
                tokenizer, request.sampling, index=index, format=request.format, name=request.id
            )
            for index in range(len(sequences))
        ]
        self._cancel = cancel
        self._field = "" if request.asked is None else request.asked.field
        self.ids = tuple(self._running)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has given its last delta."""
        return not self._running

    def feed(self, event: TokenEvent, now: float) -> None:
        """One of the request's sequences had an event, which arrived at `now`."""
        index = self._running.get(event.id)
        if index is None:
            return
        self._timer.record(index, event, now)
        if event.finish_reason == "error":
            self.fail(failure(event, self._field))
        else:
            self._put(event)

    async def next(self) -> tuple[Delta, ...]:
        """The deltas of everything that came since the last call, waiting for something to come.

        Raises: the FathomError that `fail` was given.
        """
        while True:
            pushed = [self._push(event) for event in await self._take()]
            if deltas := [delta for delta in pushed if delta is not None]:
                return tuple(deltas)

    def _push(self, event: TokenEvent) -> Delta | None:
        index = self._running.get(event.id)
        if index is None:
            return None  # came while a stop string had ended the choice already
        output = self._outputs[index]
        delta = output.push(event)
        if output.is_finished:
            del self._running[event.id]
        if output.needs_cancel:
            self._cancel((event.id,))
        if delta is not None and isinstance(delta.stop_reason, str):
            self._timer.stopped(index, output.num_tokens)
        return delta

    def end(self, now_s: float) -> None:
        """The consumer is done or gone: cancel what still runs, and close the record."""
        if self._running and not self._was_refused:
            self._cancel(tuple(self._running))
        self._running.clear()
        super().end(now_s)
