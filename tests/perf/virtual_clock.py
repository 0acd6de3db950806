"""A clock that stands still while anybody works, and jumps when all wait."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
# Turns of the loop after which everything that can run has run.
_TURNS = 30


class VirtualClock:
    """Gives the time and sleeps without any."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._now_s + delay_s, next(self._order), future)
        heapq.heappush(self._sleepers, entry)
        await future

    async def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What `work` gives, however long it would have taken."""
        task = asyncio.create_task(work)
        while not task.done():
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if task.done():
                break
            assert self._sleepers, "everybody waits for something that does not come"
            due_s, _, future = heapq.heappop(self._sleepers)
            self._now_s = max(self._now_s, due_s)
            if not future.done():
                future.set_result(None)
        return await task
