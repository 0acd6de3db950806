"""An engine in a thread of this process on the simulated executor, for the client side's tests."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from fathom.config import EngineConfig
from fathom.core.executor import Capacity
from fathom.core.loop import EngineCore
from fathom.core.scheduler import SchedulerConfig
from fathom.core.types import Admission, SamplingParams, StepPlan, StepResult
from fathom.engine.channel import Channel, ChannelClosed
from fathom.engine.messages import Configure, Died, Progress, Ready, pack_error
from fathom.engine.processes import EngineServer
from fathom.engine.text_side import model_directory
from fathom.errors import EngineError, FathomError
from fathom.spec.deepseek import parse_config
from fathom.spec.formats import FLOAT32
from fathom.spec.parallel import Layout
from fathom.spec.plan import DeploymentPlan
from fathom.weights.index import read_json
from tests.core.simulated import PseudoModel, SimulatedExecutor, mix
from tests.engine.in_process_channel import in_process_pair

CAPACITY = Capacity(num_pages=256, page_size=16, max_batch_tokens=256, max_sequences=64, depth=2)
EXIT_CODE = 0


class SimulatedChild:
    """Runs an EngineServer in a thread, as `EngineProcess` runs one in a process.

    `step_s` is how long a step really takes; `fail_at_step` makes that step fail.
    """

    def __init__(
        self,
        *,
        model: PseudoModel | None = None,
        capacity: Capacity = CAPACITY,
        max_queued: int = 1024,
        max_model_len: int = 1024,
        load_error: FathomError | None = None,
        step_s: float = 0.0,
        fail_at_step: int = 0,
    ) -> None:
        self.executor = _Executor(capacity, model or PseudoModel(), step_s, fail_at_step)
        config = SchedulerConfig(max_model_len=max_model_len, max_queued=max_queued)
        self.core = EngineCore(self.executor, config)
        self.max_model_len = max_model_len
        self.load_error = load_error
        self.channel: Channel[Any, Any]

    async def launch(self) -> tuple[SimulatedChild, Channel[Any, Any]]:
        """Start the thread; fits AsyncEngine.start(launch=...)."""
        client, self.channel = in_process_pair()
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def run() -> None:
            self._serve()
            self.channel.close()
            loop.call_soon_threadsafe(self._ended.set)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self, client

    def _serve(self) -> None:
        try:
            message = self.channel.receive(5.0)
            assert isinstance(message, Configure)
            self.channel.send(Progress("loading", "a simulation"))
            if self.load_error:
                self.channel.send(Died(pack_error(self.load_error)))
                return
            self.channel.send(Ready(plan(self.max_model_len)))
            EngineServer(self.core, self.channel).run()
        except ChannelClosed:
            pass
        except FathomError as error:
            self.channel.send(Died(pack_error(error)))

    def kill(self) -> None:
        """Hang up without a word."""
        self.channel.close()

    async def wait(self) -> int:
        await self._ended.wait()
        return EXIT_CODE

    async def end(self, grace_s: float) -> int:
        try:
            await asyncio.wait_for(self._ended.wait(), max(grace_s, 0.01))
        except TimeoutError:
            self.channel.close()
            await asyncio.wait_for(self._ended.wait(), 5.0)
        return EXIT_CODE


class _Executor(SimulatedExecutor):
    """Takes real time for a step, so that clients can come between steps."""

    def __init__(
        self, capacity: Capacity, model: PseudoModel, step_s: float, fail_at_step: int
    ) -> None:
        super().__init__(capacity, model=model)
        self._step_s, self._fail_at_step = step_s, fail_at_step

    def submit(self, plan: StepPlan) -> Any:
        time.sleep(self._step_s)
        handle = super().submit(plan)
        return _Failing() if plan.step == self._fail_at_step else handle


class _Failing:
    def wait(self, timeout_s: float) -> StepResult:
        raise EngineError("a kernel failed")

    def done(self) -> bool:
        return True


def plan(max_model_len: int) -> DeploymentPlan:
    """A plan with the simulated executor's capacity."""
    directory = model_directory(EngineConfig())
    return DeploymentPlan(
        model_path=str(directory),
        served_names=("simulated",),
        model=parse_config(read_json(directory / "config.json")),
        layout=Layout(),
        device="cpu",
        compute_dtype=FLOAT32,
        kv_dtype=FLOAT32,
        page_size=CAPACITY.page_size,
        num_pages=CAPACITY.num_pages,
        max_model_len=max_model_len,
        max_batch_tokens=CAPACITY.max_batch_tokens,
        max_sequences=CAPACITY.max_sequences,
        max_queued=1024,
        num_drafts=0,
        run_ahead=1,
        prefix_cache=True,
        threads=1,
        seed=0,
        step_timeout_s=10.0,
        ledger=(),
        decisions=(),
    )


def naive_tokens(
    model: PseudoModel, prompt: tuple[int, ...], sampling: SamplingParams, seed: int
) -> tuple[int, ...]:
    """The tokens that the pseudo model gives by itself, one at a time."""
    admission = Admission(prompt, len(prompt), sampling, seed, ())
    state = 0
    for token_id in prompt:
        state = mix(state, token_id)
    tokens: list[int] = []
    for position in range(sampling.max_tokens or 0):
        tokens.append(model.next_token(state, admission, position, None))
        state = mix(state, tokens[-1])
    return tuple(tokens)
