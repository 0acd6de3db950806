"""The executor of one rank, in a thread of this process."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol

from fathom.core.executor import Capacity
from fathom.core.types import Mask, StepPlan, StepResult
from fathom.errors import EngineError
from fathom.runtime.executors.pending import PendingStep, PendingSteps

_log = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 10.0


class StepRunner(Protocol):
    """What runs plans; `runtime.worker.Worker` is one."""

    def prepare(self, plan: StepPlan) -> Callable[[], StepResult]:
        """What runs the step, once the steps before it have run. Those may still run meanwhile."""
        ...


class LocalExecutor:
    """Runs plans in order in one worker thread, so that planning overlaps the device; another
    thread reads a plan's masks meanwhile, so that they are there when the worker asks.

    `submit` makes a step ready in the thread that calls it: the worker's comes from a step to the
    next one with little to do in between. `on_start` is called once in the worker's thread, before
    its first step.
    """

    def __init__(
        self,
        worker: StepRunner,
        capacity: Capacity,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.capacity, self._on_start = capacity, on_start
        self._worker = worker
        self._pending = PendingSteps(capacity.depth)
        self._steps: queue.SimpleQueue[tuple[int, Callable[[], StepResult]] | None]
        self._steps = queue.SimpleQueue()
        self._masks: queue.SimpleQueue[list[Mask] | None] = queue.SimpleQueue()
        self._threads = (
            threading.Thread(target=self._run, name="fathom-worker", daemon=True),
            threading.Thread(target=self._read_masks, name="fathom-masks", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def submit(self, plan: StepPlan) -> PendingStep:
        """Queue a plan. Raises: EngineError after a failure or `close`, or over the depth."""
        step = self._pending.open(plan)
        masks = [entry.mask for entry in plan.entries if entry.mask is not None]
        if masks:
            self._masks.put(masks)
        try:
            run = self._worker.prepare(plan)
        except Exception as error:
            run = partial(_fail, error)  # in its turn: the steps before it are not to blame
        self._steps.put((plan.step, run))
        return step

    def close(self) -> None:
        """Fail what is in flight and stop the threads; idempotent.

        A step that is running cannot be cut short: each thread gets 10 s to come out of it, and
        as a daemon does not hold up the end of the process. One that is still on its way then may
        be the last to hold the weights, and to free those while the interpreter ends is fatal.
        """
        self._pending.fail(EngineError("the executor", found="closed"))
        self._masks.put(None)
        self._steps.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT_S)
            if thread.is_alive():
                _log.warning("still_running thread=%s after_s=%g", thread.name, _CLOSE_TIMEOUT_S)

    def _read_masks(self) -> None:
        while (masks := self._masks.get()) is not None:
            for mask in reversed(masks):  # the worker, should it get there first, does the others
                mask.read()

    def _run(self) -> None:
        self._on_start()
        while (step := self._steps.get()) is not None and self._pending.failure is None:
            number, run = step
            try:
                result = run()
            except Exception as error:
                _log.exception("step_failed step=%d", number)
                self._pending.fail(_as_engine_error(number, error))
            else:
                self._pending.settle(result)


def _fail(error: Exception) -> NoReturn:
    raise error


def _as_engine_error(step: int, cause: Exception) -> EngineError:
    if isinstance(cause, EngineError):
        return cause
    error = EngineError(f"step {step} failed", found=f"{type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
