"""What the routes share: the engine, what it serves, and whether it may be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fathom.core.types import CoreStats, SamplingParams
from fathom.engine.messages import Progress
from fathom.engine.requests import GenerateRequest
from fathom.engine.text_side import TextSide
from fathom.errors import FathomError, NotFoundError, UnavailableError
from fathom.server.config import ServerConfig
from fathom.server.observer import ServerObserver
from fathom.server.responses.store import ResponseStore
from fathom.spec.plan import DeploymentPlan, RemotePlan
from fathom.text.absent import AbsentTokenizer
from fathom.text.chat import ChatTemplate, choose_template
from fathom.text.delta import Delta
from fathom.text.tokenizer import Tokenizer

# The engine says every half second that it runs. After so long without a word it is not ready.
HEARTBEAT_LIMIT_S = 10.0
# A step of so long is stuck or far too large: balancers should send requests elsewhere meanwhile.
STEP_LIMIT_S = 30.0
# Text longer than this is rendered and encoded in a thread, so that streams go on meanwhile.
OFF_LOOP_BYTES = 4 * 1024

T = TypeVar("T")


class Engine(Protocol):
    """What the server needs of an engine; `engine.async_engine.AsyncEngine` has it."""

    @property
    def phase(self) -> str:
        """loading, ready, draining or dead."""
        ...

    @property
    def progress(self) -> Progress:
        """What is being done while loading."""
        ...

    @property
    def stats(self) -> CoreStats:
        """Gauges after the last step."""
        ...

    @property
    def failure(self) -> FathomError | None:
        """Why the phase is dead."""
        ...

    @property
    def plan(self) -> DeploymentPlan | RemotePlan:
        """What runs. Raises: UnavailableError until ready."""
        ...

    @property
    def text(self) -> TextSide:
        """Raises: UnavailableError until ready."""
        ...

    def heartbeat_age_s(self) -> float:
        """Seconds since the engine was last heard."""
        ...

    @property
    def step_age_s(self) -> float:
        """Seconds that the step under way has run."""
        ...

    def flush_cache(self) -> None:
        """Forget cached prefixes that nothing uses, before whatever is asked next."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[tuple[Delta, ...], None]:
        """The deltas of a request; closing it cancels."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that answers, once it is loaded."""

    plan: DeploymentPlan | RemotePlan
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams
    created_s: int

    @property
    def is_rendered_here(self) -> bool:
        """Whether prompts become tokens here; an upstream server does it otherwise."""
        return not isinstance(self.tokenizer, AbsentTokenizer)

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.plan.served_names[0]

    def check_name(self, asked: str | None) -> None:
        """Raises: NotFoundError unless `asked` is a served name (or not given)."""
        if asked is not None and asked not in self.plan.served_names:
            raise NotFoundError(
                f"the model {asked[:200]!r} does not exist",
                param="model",
                code="model_not_found",
                wanted=", ".join(self.plan.served_names),
                fix="use a name from /v1/models",
            )


class ServerState:
    """One server's state. Made before the engine is; `engine` is set when it starts to load."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.engine: Engine | None = None
        self.observer = ServerObserver(logs_requests=config.enable_log_requests)
        self.is_draining = False
        self.num_active = 0
        """Requests that are being answered."""
        self.responses = ResponseStore(config.responses_db, config.responses_ttl_s, time.time)
        """Answers that clients may come back to."""
        self._model: ServedModel | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="text")

    @property
    def phase(self) -> str:
        """loading, ready, stalled, draining or dead."""
        if self.engine is None:
            return "draining" if self.is_draining else "loading"
        if self.engine.phase == "dead":
            return "dead"
        if self.is_draining:
            return "draining"
        is_silent = self.engine.heartbeat_age_s() > HEARTBEAT_LIMIT_S
        is_stuck = is_silent or self.engine.step_age_s > STEP_LIMIT_S
        return "stalled" if self.engine.phase == "ready" and is_stuck else self.engine.phase

    def require(self) -> tuple[Engine, ServedModel]:
        """The engine and its model. Raises: UnavailableError unless it may be asked."""
        phase = self.phase
        if self.engine is None or phase not in ("ready", "stalled"):
            raise UnavailableError(f"the server is {phase}", fix="try again in a while")
        return self.engine, self.model(self.engine)

    def model(self, engine: Engine) -> ServedModel:
        """What `engine` serves. Raises: UnavailableError until it is ready."""
        if self._model is None:
            text, named = engine.text, self.config.chat_template
            self._model = ServedModel(
                plan=engine.plan,
                tokenizer=text.tokenizer,
                template=choose_template(text.tokenizer.config, named, text.tokenizer.special_ids)
                if named
                else text.template,
                defaults=text.defaults,
                created_s=int(time.time()),
            )
        return self._model

    async def off_loop(self, work: Callable[[], T], size_bytes: int) -> T:
        """What `work` gives, from a thread where its input is large."""
        if size_bytes <= OFF_LOOP_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads and the store go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.responses.close()
