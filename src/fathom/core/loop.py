"""The step loop: plan, submit, commit. Knows executors only by their protocol, and no clock.

At depth 2 the host plans step N + 1 while the device runs step N:

    host     plan 1 | plan 2 |  (wait)  | commit 1, plan 3 |  (wait)  | commit 2, plan 4 |
    device          | step 1 .......... | step 2 ......................| step 3 .........
"""

from __future__ import annotations

import logging
from collections import deque

from fathom.core.constraint import Constraint
from fathom.core.executor import Executor, Handle
from fathom.core.scheduler import Scheduler, SchedulerConfig
from fathom.core.types import CoreStats, Request, StepPlan, TokenEvent
from fathom.errors import EngineError, UnavailableError

_log = logging.getLogger(__name__)


class EngineCore:
    """One scheduler driving one executor, one `step` at a time."""

    def __init__(
        self, executor: Executor, config: SchedulerConfig, *, step_timeout_s: float = 300.0
    ) -> None:
        self._executor = executor
        self._scheduler = Scheduler(config, executor.capacity)
        self._step_timeout_s = step_timeout_s
        # Where nobody runs ahead, two plans in flight would be two half batches taking turns.
        can_overlap = config.run_ahead and not config.num_drafts
        self._depth = executor.capacity.depth if can_overlap else 1
        self._in_flight: deque[tuple[StepPlan, Handle]] = deque()
        self._error = ""

    @property
    def error(self) -> str:
        """Why the engine is dead; empty while it lives."""
        return self._error

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._scheduler.has_work or bool(self._in_flight)

    def add(self, request: Request, now: float, constraint: Constraint | None = None) -> None:
        """Queue a request.

        Raises: RequestError and ContextLengthError for one that can never run, OverloadedError
        where the queue is full, UnavailableError once a step has failed.
        """
        if self._error:
            raise UnavailableError("the engine is dead", found=self._error, fix="restart it")
        self._scheduler.add(request, now, constraint)

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request; gives its last event, None where it has ended already."""
        return self._scheduler.cancel(request_id)

    def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses."""
        self._scheduler.flush_cache()

    def step(self, now: float) -> list[TokenEvent]:
        """Submit a plan if there is one, then commit the oldest if no more can be submitted.

        Waits for the device at most `step_timeout_s`. When a step fails, every request ends with
        "error" and the engine is dead: what the device still holds cannot be trusted.
        """
        try:
            if len(self._in_flight) < self._depth:
                plan = self._scheduler.plan(now)
                if plan is not None:
                    self._in_flight.append((plan, self._executor.submit(plan)))
                    if len(self._in_flight) < self._depth:
                        return []
            if not self._in_flight:
                return []
            plan, handle = self._in_flight[0]
            result = handle.wait(self._step_timeout_s)
        except EngineError as error:
            return self._die(str(error))
        self._in_flight.popleft()
        return self._scheduler.commit(plan, result)

    def _die(self, error: str) -> list[TokenEvent]:
        self._error = error
        self._in_flight.clear()
        events = self.fail_all(error)
        _log.error("step_failed num_requests=%d error=%s", len(events), error)
        return events

    def fail_all(self, error: str) -> list[TokenEvent]:
        """End every request with `error`; gives their last events."""
        return self._scheduler.fail_all(error)

    def stats(self) -> CoreStats:
        """Gauges of now and counters since the start."""
        return self._scheduler.stats()
