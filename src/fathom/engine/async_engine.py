"""The engine as the API's process sees it: asyncio, an engine process behind a channel, no torch.

start -> "loading" -> "ready" -> "draining" -> "dead"     (each may go to "dead" at once)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Literal

from fathom.config import EngineConfig
from fathom.core.types import CoreStats
from fathom.engine.child import Child, EngineProcess, Launch, say
from fathom.engine.grammars import GrammarChecker
from fathom.engine.limits import check_request
from fathom.engine.link import Link
from fathom.engine.messages import (
    Add,
    Cancel,
    Configure,
    Died,
    Events,
    FlushCache,
    FromEngine,
    Heartbeat,
    Progress,
    Ready,
    Refused,
    Shutdown,
    ToEngine,
    unpack_error,
)
from fathom.engine.requests import GenerateRequest, SeedSource, split
from fathom.engine.streams import RequestStream
from fathom.engine.text_side import TextSide, load_text, tokenizer_directory
from fathom.engine.timing import NoObserver, Observer
from fathom.errors import EngineError, FathomError, RequestError, UnavailableError
from fathom.spec.plan import DeploymentPlan
from fathom.text.delta import Delta

Phase = Literal["loading", "ready", "draining", "dead"]
# How long a step may take to end after Shutdown before the process is killed.
SHUTDOWN_GRACE_S = 5.0
# How long an engine that has hung up may take to exit; its streams wait for this.
EXIT_GRACE_S = 0.5
# How long an engine may be silent beyond its step's deadline, which it keeps itself unless it is
# stopped; and how often that is looked at.
SILENCE_GRACE_S, HEARTBEAT_CHECK_S = 30.0, 1.0

_log = logging.getLogger(__name__)


class AsyncEngine:
    """One engine and everything asked of it. All methods are for the loop that called `start`."""

    def __init__(self, config: EngineConfig, *, observer: Observer | None = None) -> None:
        self.config = config
        self.phase: Phase = "loading"
        self.progress = Progress("starting")
        """What the engine is doing while it loads."""
        self.stats = CoreStats()
        """The core's gauges after its last step."""
        self.step_age_s = 0.0
        """Seconds that the step under way had run at the last heartbeat; 0 between steps."""
        self.failure: FathomError | None = None
        """Why the phase is "dead"; None after `close`."""
        self._observer = observer or NoObserver()
        self._seeds = SeedSource(config.seed)
        self._plan: DeploymentPlan | None = None
        self._text: TextSide | None = None
        self._grammars = GrammarChecker(lambda: tokenizer_directory(config))
        self._link: Link | None = None
        self._child: Child | None = None
        self._is_closing = False
        self._supervisor: asyncio.Task[None] | None = None
        self._streams: dict[str, RequestStream] = {}
        self._names: set[str] = set()
        self._num_taken = 0
        self._heard_s = time.monotonic()
        self._settled = asyncio.Event()
        self._hung_up = asyncio.Event()
        self._ended = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        observer: Observer | None = None,
        launch: Launch = EngineProcess.start,
    ) -> AsyncEngine:
        """Begin to start an engine and return at once, in phase "loading".

        `launch` gives the running engine and the channel to it.
        """
        engine = cls(config, observer=observer)
        engine._supervisor = asyncio.create_task(engine._supervise(launch))
        return engine

    async def _supervise(self, launch: Launch) -> None:
        """From the engine's start to its end, whatever that is."""
        try:
            self._child, channel = await launch()
            self._link = Link(channel, on_message=self._handle, on_end=self._on_hang_up)
            self._heard_s = time.monotonic()
            level = logging.getLevelName(_log.getEffectiveLevel())
            self._send(Configure(self.config, level))
            self._text = await asyncio.to_thread(load_text, self.config)
            self._settle()
            await self._watch(self._child)
        except FathomError as error:
            self._die(error)
        except Exception as error:
            _log.exception("engine supervision failed")
            self._die(EngineError(f"{type(error).__name__}: {error}"))
        finally:
            await self._grammars.close()
            if self._child is not None:
                await self._child.end(0.0)

    async def _watch(self, child: Child) -> None:
        """Wait for the child's end, or for it to hang up, which is the same a moment earlier."""
        exited = asyncio.ensure_future(child.wait())
        hung_up = asyncio.ensure_future(self._hung_up.wait())
        silent = asyncio.ensure_future(self._silence())
        waits = (exited, hung_up, silent)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        is_silent = silent.done()
        for waiting in waits:
            waiting.cancel()
        code = await child.end(SHUTDOWN_GRACE_S if self._is_closing else EXIT_GRACE_S)
        if self._link is not None:
            self._link.read()  # what it said last
        found = "no exit code" if code is None else say(code)
        if is_silent:
            found = "not a word for longer than a step may take"
        self._die(None if self._is_closing else EngineError("the engine is gone", found=found))

    async def _silence(self) -> None:
        """Returns once the engine has been silent for longer than its own deadlines would allow."""
        while self.heartbeat_age_s() < self.config.step_timeout_s + SILENCE_GRACE_S:
            await asyncio.sleep(HEARTBEAT_CHECK_S)
            if self._link is not None:
                self._link.read()  # this process may be the one that was held

    # --- state -----------------------------------------------------------------------------

    @property
    def plan(self) -> DeploymentPlan:
        """What runs, with reasons. Raises: UnavailableError until the engine is ready."""
        if self._plan is None:
            raise self._unavailable()
        return self._plan

    @property
    def text(self) -> TextSide:
        """Tokenizer, template, default sampling. Raises: UnavailableError until they are loaded."""
        if self._text is None:
            raise self._unavailable()
        return self._text

    @property
    def pid(self) -> int | None:
        """The engine's process; None until it has connected, and where there is no process."""
        return self._child.pid if isinstance(self._child, EngineProcess) else None

    @property
    def num_requests(self) -> int:
        """Requests whose consumers have not been given everything."""
        return len(set(self._streams.values()))

    def heartbeat_age_s(self) -> float:
        """Seconds since the engine's process last said anything; it does so every half second."""
        return time.monotonic() - self._heard_s

    async def ready(self) -> DeploymentPlan:
        """Wait until the engine can answer.

        Raises: the FathomError that kept it from loading; UnavailableError where it was closed.
        """
        await self._settled.wait()
        if self.phase == "dead":
            raise self.failure or self._unavailable()
        return self.plan

    async def ended(self) -> FathomError | None:
        """Wait for the phase "dead"; gives the reason, None where `close` was called."""
        await self._ended.wait()
        return self.failure

    # --- requests --------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[tuple[Delta, ...], None]:
        """The request's deltas as they come, all that came since the last ones together.

        Closing the generator, or cancelling the task that iterates it, cancels the request in the
        engine. A request without a seed gets the next one of a sequence that follows from the
        engine's seed: the same requests in the same order after a start get the same answers.

        Raises: before the first delta, RequestError (ContextLengthError, ...), OverloadedError or
        UnavailableError where it cannot be taken; later, EngineError where the engine dies.
        """
        if self.phase != "ready" or self._text is None:
            raise self._unavailable()
        tokenizer = self._text.tokenizer
        check_request(request.prompt_ids, request.sampling, tokenizer)
        arrival_s = time.monotonic()
        grammar = "" if request.asked is None else await self._grammars.check(request.asked)
        if self.phase != "ready":  # it may have ended meanwhile
            raise self._unavailable()
        seed = request.sampling.seed
        # A number that no request had: events of one that was left may still be on their way.
        self._num_taken += 1
        sequences = split(
            replace(request, id=f"{request.id}-{self._num_taken}"),
            seed=self._seeds.draw() if seed is None else seed,
            eos_ids=tokenizer.eos_ids,
            arrival_s=arrival_s,
        )
        stream = RequestStream(
            request, sequences, tokenizer, observer=self._observer, cancel=self._cancel
        )
        self._register(stream, request.id)
        try:
            self._send(Add(sequences, grammar), stream.refuse)
            while not stream.is_finished:
                yield await stream.next()
        finally:
            self._forget(stream, request.id)

    def flush_cache(self) -> None:
        """Forget cached prefixes that no request uses, before whatever is asked next."""
        self._send(FlushCache())

    def _register(self, stream: RequestStream, name: str) -> None:
        if name in self._names:
            raise RequestError("the request's id is in use", param="request_id", found=name)
        self._names.add(name)
        self._streams.update(dict.fromkeys(stream.ids, stream))
        self._idle.clear()

    def _forget(self, stream: RequestStream, name: str) -> None:
        self._names.remove(name)
        for sequence_id in stream.ids:
            del self._streams[sequence_id]
        if not self._streams:
            self._idle.set()
        stream.end(time.monotonic())

    def _cancel(self, ids: tuple[str, ...]) -> None:
        self._send(Cancel(ids))

    def _unavailable(self) -> UnavailableError:
        found = {"loading": f"{self.progress.phase} {self.progress.detail}".strip()}
        return UnavailableError(
            f"the engine is {self.phase}",
            found=str(self.failure) if self.failure else found.get(self.phase, ""),
            fix="try again when it is ready" if self.phase == "loading" else "",
        )

    # --- the end ---------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for those that run; whether all ended in time."""
        if self.phase in ("loading", "ready"):
            self.phase = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    async def close(self, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """End the engine: after the step that runs, or killed `grace_s` later; idempotent.

        Requests that still run end with EngineError. An engine that is loading is killed at once:
        it has nothing to finish.
        """
        self._is_closing = True
        if self.phase in ("loading", "ready"):
            self.phase = "draining"
        self._send(Shutdown())
        if self._child is not None:
            await self._child.end(grace_s if self._plan is not None else 0.0)
        elif self._supervisor is not None:
            self._supervisor.cancel()
        self._die(None)
        if self._supervisor is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    # --- the channel -----------------------------------------------------------------------

    def _send(
        self, message: ToEngine, on_error: Callable[[FathomError], None] | None = None
    ) -> None:
        if self._link is not None:
            self._link.send(message, on_error)

    def _on_hang_up(self, error: FathomError | None) -> None:
        """No more messages. `_watch` says why, unless what came was no message."""
        if error is not None:
            self._die(error)
        self._hung_up.set()

    def _handle(self, message: FromEngine) -> None:
        self._heard_s = time.monotonic()
        if isinstance(message, Events):
            num_tokens = message.stats.computed_tokens - self.stats.computed_tokens
            if num_tokens:
                self._observer.on_step(num_tokens)
            self.stats = message.stats
            for event in message.events:
                stream = self._streams.get(event.id)
                if stream is not None:
                    stream.feed(event, self._heard_s)
            self.step_age_s = 0.0
        elif isinstance(message, Heartbeat):
            self.step_age_s = message.step_age_s
        elif isinstance(message, Refused):
            stream = self._streams.get(message.ids[0])
            if stream is not None:
                stream.refuse(unpack_error(message.error))
        elif isinstance(message, Progress):
            self.progress = message
        elif isinstance(message, Ready):
            self._plan = message.plan
            self._settle()
        elif isinstance(message, Died):
            self._die(unpack_error(message.error))

    def _settle(self) -> None:
        """Become ready once the engine and the text side both are."""
        if self.phase == "loading" and self._plan is not None and self._text is not None:
            self.phase, self.progress = "ready", Progress("ready")
            self._settled.set()

    def _die(self, error: FathomError | None) -> None:
        """End everything that is under way; `error` None where that was asked for."""
        if self.phase == "dead":
            return
        self.phase, self.failure = "dead", error
        if self._link is not None:
            self._link.close()
        self._hung_up.set()
        if error is not None:
            # What kept it from loading, `ready` raises; whoever waits for that says it.
            level = logging.DEBUG if self._plan is None else logging.ERROR
            _log.log(level, "engine died", extra={"error": str(error)})
        reason = str(error) if error else "it was told to stop"
        for stream in set(self._streams.values()):
            stream.fail(EngineError("the engine stopped before the answer ended", found=reason))
        self._settled.set()
        self._ended.set()
