"""Puts the local executor under the executor contract: with a toy model, and with a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fathom.core.executor import Capacity, Executor
from fathom.core.types import PlanEntry, StepPlan, StepResult
from fathom.errors import EngineError
from fathom.runtime.build import build_executor
from fathom.runtime.executors.local import LocalExecutor
from tests.core.executor_conformance import ExecutorCase, SamplingConformance
from tests.runtime.test_worker import make_worker
from tests.runtime.tiny_plans import VOCAB, tiny_plan
from tests.runtime.toy_model import VOCAB as TOY_VOCAB
from tests.runtime.toy_model import ToyDrafts


def _capacity(depth: int, page_size: int = 4) -> Capacity:
    return Capacity(
        num_pages=512, page_size=page_size, max_batch_tokens=512, max_sequences=16, depth=depth
    )


def _toy(depth: int, page_size: int, drafts: ToyDrafts | None = None) -> Executor:
    return LocalExecutor(make_worker(page_size, drafts=drafts), _capacity(depth, page_size))


class TestLocalWithToyModel(SamplingConformance):
    case = ExecutorCase(
        lambda depth: _toy(depth, 4, ToyDrafts(2, is_strict=False)), TOY_VOCAB, num_drafts=3
    )


class TestLocalWithPagesOfOneToken(SamplingConformance):
    case = ExecutorCase(lambda depth: _toy(depth, 1), TOY_VOCAB)


class TestLocalWithDeepseek(SamplingConformance):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _case(cls, tiny_checkpoint: Path) -> None:
        cls.case = ExecutorCase(
            lambda depth: build_executor(tiny_plan(tiny_checkpoint, num_drafts=1, depth=depth)),
            VOCAB,
            num_drafts=1,
        )


class _Stuck:
    """A device that does not come back until it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def prepare(self, plan: StepPlan) -> Callable[[], StepResult]:
        def run() -> StepResult:
            self.release.wait(30)
            return StepResult(plan.step, {})

        return run


class _Broken:
    """Fails when a step runs, or already when it is prepared."""

    def __init__(self, fails_early: bool) -> None:
        self._fails_early = fails_early

    def prepare(self, plan: StepPlan) -> Callable[[], StepResult]:
        def run() -> StepResult:
            raise MemoryError("no more of it")

        return run() if self._fails_early else run


class _Told:
    """A mask that tells when it is read."""

    def __init__(self) -> None:
        self.is_read = threading.Event()

    def read(self) -> bytes:
        self.is_read.set()
        return b""


def test_masks_are_read_while_the_device_is_at_work() -> None:
    worker, masks = _Stuck(), [_Told(), _Told()]
    executor = LocalExecutor(worker, _capacity(1))
    entries = tuple(PlanEntry(i, 0, (1,), (), True, mask=mask) for i, mask in enumerate(masks))
    handle = executor.submit(StepPlan(1, entries))
    assert all(mask.is_read.wait(30) for mask in masks)
    assert not handle.done()
    worker.release.set()
    handle.wait(30)
    executor.close()


def test_a_step_that_is_late_is_an_error_that_names_it() -> None:
    worker = _Stuck()
    executor = LocalExecutor(worker, _capacity(2))
    handle = executor.submit(StepPlan(7, ()))
    assert not handle.done()
    with pytest.raises(EngineError, match=r"step 7; found: no result after 0\.01 s"):
        handle.wait(0.01)
    worker.release.set()
    assert handle.wait(30).step == 7
    executor.close()


@pytest.mark.parametrize("fails_early", [False, True])
def test_a_failure_reaches_the_waiter_with_its_cause_and_ends_it(fails_early: bool) -> None:
    executor = LocalExecutor(_Broken(fails_early), _capacity(2))
    handle = executor.submit(StepPlan(1, ()))
    with pytest.raises(EngineError, match="MemoryError: no more of it") as caught:
        handle.wait(30)
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(EngineError, match="MemoryError"):
        executor.submit(StepPlan(2, ()))
    executor.close()


def test_submit_does_not_wait_and_refuses_more_than_the_depth() -> None:
    worker = _Stuck()
    executor = LocalExecutor(worker, _capacity(2))
    handles = [executor.submit(StepPlan(1, ())), executor.submit(StepPlan(2, ()))]
    with pytest.raises(EngineError, match="fewer than 2"):
        executor.submit(StepPlan(3, ()))
    worker.release.set()
    assert [handle.wait(30).step for handle in handles] == [1, 2]
    executor.close()


def test_close_does_not_leave_a_waiter_behind() -> None:
    worker = _Stuck()
    executor = LocalExecutor(worker, _capacity(2))
    handle = executor.submit(StepPlan(1, ()))
    closer = threading.Thread(target=executor.close)
    closer.start()
    with pytest.raises(EngineError, match="closed"):
        handle.wait(30)
    worker.release.set()
    closer.join(30)
    assert not closer.is_alive()


def test_close_leaves_no_thread_behind() -> None:
    """The one that reads masks was not waited for: where it was the last to hold the weights, it
    freed them while the interpreter ended, and the process ended with SIGABRT."""
    executor = LocalExecutor(_Broken(False), _capacity(1))
    began = set(executor._threads)
    assert began <= set(threading.enumerate())
    executor.close()
    assert not began & set(threading.enumerate())
