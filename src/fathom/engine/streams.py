"""The client's side of one request: events of its sequences in, deltas of its choices out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fathom.core.types import Request, TokenEvent
from fathom.engine.requests import GenerateRequest
from fathom.engine.timing import Observer, RequestTimer
from fathom.errors import EngineError, FathomError, RequestError
from fathom.text.delta import Delta
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer


class RequestStream:
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
        self._running = {sequence.id: index for index, sequence in enumerate(sequences)}
        self._outputs = [
            OutputStream(
                tokenizer, request.sampling, index=index, format=request.format, name=request.id
            )
            for index in range(len(sequences))
        ]
        self._timer = RequestTimer(
            request.sampling, len(request.prompt_ids), sequences[0].arrival_s, observer
        )
        self._cancel = cancel
        self._news: deque[TokenEvent] = deque()
        self._error: FathomError | None = None
        self._has_news = asyncio.Event()
        self._was_refused = False
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
            kind = RequestError if event.blames_request else EngineError
            self.fail(kind("the engine could not complete the answer", found=event.error))
        else:
            self._news.append(event)
            self._has_news.set()

    def fail(self, error: FathomError) -> None:
        """Nothing will come any more: `next` raises `error` when it has given what came before."""
        if self._error is None and self._running:
            self._error = error
            self._timer.failed()
            self._has_news.set()

    def refuse(self, error: FathomError) -> None:
        """The engine did not take the request: `next` raises `error`, and nothing is recorded."""
        self._was_refused = True
        self.fail(error)

    async def next(self) -> tuple[Delta, ...]:
        """The deltas of everything that came since the last call, waiting for something to come.

        Raises: the FathomError that `fail` was given.
        """
        while True:
            while not self._news:
                if self._error is not None:
                    raise self._error
                self._has_news.clear()
                await self._has_news.wait()
            deltas = []
            while self._news:
                delta = self._push(self._news.popleft())
                if delta is not None:
                    deltas.append(delta)
            if deltas:
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

    def end(self, now: float) -> None:
        """The consumer is done or gone: cancel what still runs, and close the record."""
        if self._running and not self._was_refused:
            self._cancel(tuple(self._running))
        self._running.clear()
        if not self._was_refused:
            self._timer.end(now)
