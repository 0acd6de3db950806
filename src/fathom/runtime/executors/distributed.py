"""The executor of several ranks on one node: a process each, joined by torch.distributed.

    this process                        rank 0                      rank 1
    submit -> sender thread ==plan==>   execute <= gloo, loopback => execute
    handle <- receiver thread <=result= sampled tokens  =all_gather=> the same tokens

The ranks find each other through a file in a private directory. The end of any of them fails
every step in flight, names it, and ends the others.
"""

from __future__ import annotations

import logging
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fathom.config import child_environment
from fathom.core.executor import Capacity
from fathom.core.types import StepPlan
from fathom.errors import CapacityError, CheckpointError, ConfigError, EngineError, FathomError
from fathom.runtime.executors.pending import PendingStep, PendingSteps
from fathom.runtime.executors.rank_process import RankProcess
from fathom.runtime.executors.wire import (
    RankFailed,
    RankMessage,
    RankResult,
    RankStart,
    encode,
    encode_masks,
)
from fathom.spec.plan import DeploymentPlan

_log = logging.getLogger(__name__)
# When one rank dies, its peers fail in the middle of a collective. All signs arrive within this
# time; then the cause can be told from its consequences.
_GRACE_S = 0.3
_END_TIMEOUT_S = 5.0
_START_ERRORS: dict[str, type[FathomError]] = {
    kind.__name__: kind for kind in (CapacityError, CheckpointError, ConfigError)
}


class DistributedExecutor:
    """Sends each plan to all ranks; the first one answers.

    Raises: EngineError where a rank ends, or is not ready after `start_timeout_s`.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        capacity: Capacity,
        *,
        start_timeout_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = capacity
        self._pending = PendingSteps(capacity.depth)
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._ready: set[int] = set()
        self._failed: dict[int, RankFailed] = {}  # in the order of their arrival
        self._lost: list[int] = []
        self._is_closing = False
        # mkdtemp makes it for this user alone.
        self._directory = Path(tempfile.mkdtemp(prefix="fathom-ranks-"))
        self._ranks: list[RankProcess] = []
        self._sender = threading.Thread(target=self._send, name="fathom-plans", daemon=True)
        self._sender.start()
        try:
            self._start(plan)
            self._wait_until_ready(clock, start_timeout_s)
        except BaseException:
            self.close()
            raise

    def submit(self, plan: StepPlan) -> PendingStep:
        """Queue a plan. Raises: EngineError after a failure or `close`, or over the depth."""
        step = self._pending.open(plan)
        self._plans.put(plan)
        return step

    def close(self) -> None:
        """Fail what is in flight and end the ranks; idempotent. Takes at most about 5 s."""
        with self._state:
            self._is_closing = True
            self._state.notify_all()
        self._pending.fail(EngineError("the executor", found="closed"))
        self._plans.put(None)
        for rank in self._ranks:
            rank.ask_to_end()
        for rank in self._ranks:
            rank.end(_END_TIMEOUT_S)
        self._sender.join(_END_TIMEOUT_S)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, plan: DeploymentPlan) -> None:
        world_size = plan.layout.world_size
        threads = max(1, plan.threads // world_size)
        environment = child_environment() | {
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for rank in range(world_size):
            process = RankProcess(
                rank, environment, on_message=self._on_message, on_lost=self._on_lost
            )
            self._ranks.append(process)
            process.send_message(RankStart(plan, str(self._directory / "store")))

    def _wait_until_ready(self, clock: Callable[[], float], timeout_s: float) -> None:
        deadline = clock() + timeout_s
        with self._state:
            while len(self._ready) < len(self._ranks):
                if self._pending.failure is not None:
                    raise self._start_failure(self._pending.failure)
                left_s = deadline - clock()
                if left_s <= 0:
                    raise self._not_ready(timeout_s)
                self._state.wait(left_s)

    def _start_failure(self, error: EngineError) -> FathomError:
        """What kept the ranks from starting, as the error that one rank alone would raise."""
        failed = next(iter(self._failed.values()), None)
        kind = _START_ERRORS.get(failed.kind) if failed is not None else None
        if failed is None or kind is None:
            return error
        return kind(failed.what, found=failed.found, wanted=failed.wanted, fix=failed.fix)

    def _not_ready(self, timeout_s: float) -> EngineError:
        missing = [rank for rank in self._ranks if rank.rank not in self._ready]
        return EngineError(
            f"{len(missing)} of {len(self._ranks)} ranks not ready after {timeout_s:g} s",
            found="; ".join(f"rank {rank.rank}{rank.tail()}" for rank in missing),
            fix="look for the first error in the output above",
        )

    def _send(self) -> None:
        """In its own thread: a rank that is busy may leave a large plan in the socket for long,
        and masks are computed here while the ranks are at work."""
        while (plan := self._plans.get()) is not None:
            self._send_frame(encode(plan))
            masks = encode_masks(plan)
            if masks is not None:
                self._send_frame(masks)

    def _send_frame(self, frame: bytes) -> None:
        for rank in self._ranks:
            rank.send(frame)

    def _on_message(self, rank: int, message: RankMessage) -> None:
        if isinstance(message, RankResult):
            self._pending.settle(message.result)
            return
        with self._state:
            if isinstance(message, RankFailed):
                self._failed.setdefault(rank, message)
            else:
                self._ready.add(rank)
            self._state.notify_all()

    def _on_lost(self, rank: int) -> None:
        """A rank's connection has closed: find out who began it, and end the rest."""
        with self._state:
            self._lost.append(rank)
            if self._is_closing or len(self._lost) > 1:
                return
            self._state.wait_for(
                lambda: self._is_closing or len(self._lost) == len(self._ranks), _GRACE_S
            )
            if self._is_closing:
                return
            culprit = self._culprit()
            failed = self._failed.get(culprit)
        error = EngineError(
            self._ranks[culprit].describe_end(_GRACE_S),
            found=f"{failed.what} {failed.found}".strip() if failed else "no word of why",
            fix="restart the engine; a rank that was killed may have been out of memory",
        )
        _log.error("rank_lost rank=%d error=%s", culprit, error)
        self._pending.fail(error)
        with self._state:
            self._state.notify_all()
        for process in self._ranks:
            process.ask_to_end()

    def _culprit(self) -> int:
        """The rank that began it: one that ended without a word; else the first that spoke of a
        failure, for its peers spoke of its absence later."""
        silent = [rank for rank in self._lost if rank not in self._failed]
        return silent[0] if silent else next(iter(self._failed))
