"""Sends the requests of a workload when they are due, and records how each went.

Arrivals come from the workload's own clock: a server that is slow does not slow them down. Where
`max_concurrency` keeps a request waiting, its latency has begun. How a request is sent is the
caller's; `perf.openai_stream` sends over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from fathom.perf.report import Report, RequestRecord
from fathom.perf.workload import LoadRequest, Workload


class Clock(Protocol):
    """Where time comes from, in seconds."""

    def now_s(self) -> float:
        """The time; its zero means nothing."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Come back after `delay_s`, or a little later."""
        ...


class WallClock:
    """The clock of this machine."""

    def now_s(self) -> float:
        """Seconds of the monotonic clock with the finest steps."""
        return time.perf_counter()

    async def sleep(self, delay_s: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(delay_s)


@dataclass(slots=True)
class Answer:
    """What came of one request: times on the clock, not yet relative to the start of the run."""

    end_s: float
    times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    error_kind: str = ""
    error: str = ""


Send = Callable[[int, LoadRequest], Awaitable[Answer]]
"""Sends the request with this index. Failures are told in the answer; it raises nothing."""
INTERRUPTED = "interrupted"


async def drive(
    workload: Workload,
    send: Send,
    clock: Clock,
    *,
    stop: asyncio.Event | None = None,
    watch: Callable[[RequestRecord], None] | None = None,
) -> Report:
    """Run the workload to its end, or until `stop` is set; what was under way then has failed.
    `watch` sees each record as it is made."""
    run = _Run(workload, send, clock, watch)
    stop = stop or asyncio.Event()
    if stop.is_set():
        return Report(records=(), duration_s=0.0, is_closed=workload.is_closed, is_interrupted=True)
    stopping = asyncio.create_task(stop.wait())
    dispatching = asyncio.create_task(run.dispatch())
    try:
        await asyncio.wait((stopping, dispatching), return_when=asyncio.FIRST_COMPLETED)
        is_interrupted = not dispatching.done()
    finally:
        stopping.cancel()
        dispatching.cancel()
        await run.cancel()
        await asyncio.wait((stopping, dispatching))
    if not dispatching.cancelled():
        dispatching.result()
    records = tuple(sorted(run.records, key=lambda one: one.index))
    ended_s = clock.now_s() if is_interrupted else run.last_end_s
    return Report(
        records=records,
        duration_s=ended_s - run.began_s,
        began_s=run.began_s,
        is_closed=workload.is_closed,
        is_interrupted=is_interrupted,
    )


class _Run:
    """The state of one run."""

    def __init__(
        self,
        workload: Workload,
        send: Send,
        clock: Clock,
        watch: Callable[[RequestRecord], None] | None,
    ) -> None:
        self._workload, self._send, self._clock, self._watch = workload, send, clock, watch
        limit = workload.max_concurrency
        self._slots = None if limit is None else asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: dict[int, list[int]] = {}
        for index, one in enumerate(workload.requests):
            if one.after is not None:
                self._followers.setdefault(one.after, []).append(index)
        self._is_dispatched = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.records: list[RequestRecord] = []
        self.began_s = self.last_end_s = clock.now_s()

    async def dispatch(self) -> None:
        """Start every request when it is due, and wait for all of them."""
        for index, one in enumerate(self._workload.requests):
            if one.after is not None:
                continue
            due_s = self.began_s + one.at_s
            await self._until(due_s)
            self._start(index, due_s)
        self._is_dispatched = True
        self._check_end()
        await self._ended

    async def _until(self, due_s: float) -> None:
        # A loop's timers count milliseconds and may be early: the last part is spent in turns.
        while (rest_s := due_s - self._clock.now_s()) > 0:
            await self._clock.sleep(rest_s)

    def _start(self, index: int, due_s: float) -> None:
        task = asyncio.create_task(self._one(index, due_s))
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not self._ended.done():
            self._ended.set_exception(failure)
        self._check_end()

    def _check_end(self) -> None:
        if self._is_dispatched and not self._tasks and not self._ended.done():
            self._ended.set_result(None)

    async def _one(self, index: int, due_s: float) -> None:
        request, clock = self._workload.requests[index], self._clock
        await self._until(due_s)  # a follow-up's client thinks first
        async with AsyncExitStack() as stack:
            if self._slots is not None:
                await stack.enter_async_context(self._slots)
            sent_s = clock.now_s()
            try:
                answer = await self._send(index, request)
            except asyncio.CancelledError:
                answer = Answer(clock.now_s(), error_kind=INTERRUPTED, error="the run was stopped")
                self._record(index, due_s, sent_s, answer)
                raise
            self._record(index, due_s, sent_s, answer)
        for follower in self._followers.get(index, ()):
            self._start(follower, answer.end_s + self._workload.requests[follower].at_s)

    def _record(self, index: int, due_s: float, sent_s: float, answer: Answer) -> None:
        began_s = self.began_s
        self.last_end_s = max(self.last_end_s, answer.end_s)
        record = RequestRecord(
            index=index,
            due_s=(sent_s if self._workload.is_closed else due_s) - began_s,
            sent_s=sent_s - began_s,
            end_s=answer.end_s - began_s,
            times_s=tuple(time_s - began_s for time_s in answer.times_s),
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            text=answer.text,
            error_kind=answer.error_kind,
            error=answer.error,
        )
        self.records.append(record)
        if self._watch is not None:
            self._watch(record)

    async def cancel(self) -> None:
        """End what is under way."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
