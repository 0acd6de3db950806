"""Runs requests on the engine: several prompts as one stream, refusals before the first byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from fathom.engine.requests import GenerateRequest
from fathom.errors import OverloadedError
from fathom.server.state import Engine, ServerState
from fathom.text.delta import Delta

# The engine says within a step whether it takes a request. After so long the stream is opened
# whatever happens, so that proxies see it live; a refusal then comes as an event.
ADMISSION_WAIT_S = 2.0

News = tuple[int, tuple[Delta, ...]]
T = TypeVar("T")


@asynccontextmanager
async def run(
    state: ServerState, engine: Engine, requests: Sequence[GenerateRequest]
) -> AsyncIterator[AsyncGenerator[News, None]]:
    """The news of all requests, each with the number of its request. Leaving cancels them."""
    try:
        async with aclosing(_merged(engine, requests)) as news:
            yield news
    except OverloadedError:
        state.observer.metrics.counters["admission_rejections"] += 1
        raise


async def _merged(
    engine: Engine, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[News, None]:
    if not requests:
        return
    if len(requests) == 1:
        async with aclosing(engine.generate(requests[0])) as deltas_of_steps:
            async for deltas in deltas_of_steps:
                yield 0, deltas
        return
    # One item a request at a time, so that a slow client slows the text of its own answers only.
    queue: asyncio.Queue[News | BaseException | None] = asyncio.Queue(len(requests))

    async def pump(number: int, request: GenerateRequest) -> None:
        try:
            async with aclosing(engine.generate(request)) as deltas_of_steps:
                async for deltas in deltas_of_steps:
                    await queue.put((number, deltas))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(requests)]
    num_running = len(pumps)
    try:
        while num_running:
            news = await queue.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                num_running -= 1
            else:
                yield news
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.wait(pumps)


async def first_or_late(items: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """`items`, with a None in front where the first of them takes longer than ADMISSION_WAIT_S."""
    first = asyncio.ensure_future(anext(items, None))
    try:
        await asyncio.wait((first,), timeout=ADMISSION_WAIT_S)
        if not first.done():
            yield None
        item = await first
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait((first,))
    if item is not None:
        yield item
        async for item in items:
            yield item
