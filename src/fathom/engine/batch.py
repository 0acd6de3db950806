"""Many requests through one core, in this process, until all are answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fathom.core.constraint import Constraint
from fathom.core.loop import EngineCore
from fathom.core.types import Request, TokenEvent
from fathom.engine.progress import ProgressBar
from fathom.engine.results import Choice
from fathom.errors import OverloadedError


@dataclass(slots=True)
class Job:
    """One request: its sequences, the choice that each of them writes, and what makes the
    constraint of one, where they have any."""

    sequences: tuple[Request, ...]
    choices: list[Choice]
    constrain: Callable[[], Constraint | None] = lambda: None

    @property
    def is_finished(self) -> bool:
        """Whether every choice is."""
        return all(choice.stream.is_finished for choice in self.choices)


class BatchRun:
    """Feeds a core with jobs as its queue has room, and their choices with its events."""

    def __init__(self, core: EngineCore, jobs: Sequence[Job]) -> None:
        self._core = core
        self._waiting = deque(request for job in jobs for request in job.sequences)
        self._job_of = {request.id: job for job in jobs for request in job.sequences}
        self._choices = {
            request.id: choice
            for job in jobs
            for request, choice in zip(job.sequences, job.choices, strict=True)
        }
        self._running: set[str] = set()
        self._num_finished = 0
        self._num_tokens = 0

    def run(self, bar: ProgressBar) -> None:
        """Answer every job. However it ends, nothing of it stays in the core.

        Raises: EngineError where the engine cannot complete one.
        """
        try:
            while self._waiting or self._running:
                self._feed()
                for event in self._core.step(time.monotonic()):
                    self._take(event)
                bar.update(self._num_finished, self._num_tokens)
        finally:
            for request_id in self._running:
                self._core.cancel(request_id)

    def _feed(self) -> None:
        now = time.monotonic()
        while self._waiting:
            request = self._waiting[0]
            try:
                self._core.add(request, now, self._job_of[request.id].constrain())
            except OverloadedError:
                return  # the queue is full; steps will make room
            self._running.add(self._waiting.popleft().id)

    def _take(self, event: TokenEvent) -> None:
        if event.id not in self._running:
            return
        choice = self._choices[event.id]
        choice.push(event)
        self._num_tokens += len(event.token_ids)
        if choice.stream.needs_cancel:
            self._core.cancel(event.id)
        if choice.stream.is_finished:
            self._running.discard(event.id)
            self._num_finished += self._job_of[event.id].is_finished
