"""An engine whose model another server runs: "loading" until that has named it, then "ready"."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fathom.core.loop_guard import LoopLimits
from fathom.core.types import CoreStats, SamplingParams, TokenEvent
from fathom.engine.limits import check_request
from fathom.engine.messages import Progress
from fathom.engine.requests import GenerateRequest, split
from fathom.engine.streams import RequestStream
from fathom.engine.text_side import TextSide
from fathom.engine.timing import Observer
from fathom.engine.upstream import chat, completions
from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.deltas import DeltaStream
from fathom.engine.upstream.files import context_of, text_side
from fathom.engine.upstream.kinds import KINDS, Kind, as_sent, as_started
from fathom.engine.upstream.wire import EventStream, Upstream, WholeAnswer
from fathom.errors import (
    ConfigError,
    EngineError,
    FathomError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from fathom.perf.http_stream import BrokenStream
from fathom.spec.plan import RemotePlan
from fathom.text.delta import Delta
from fathom.text.grammar.asked import Asked

# Between two looks for an upstream that is not up yet.
RETRY_S = 1.0

_log = logging.getLogger(__name__)
Reader = completions.CompletionReader | chat.ChatReader


class UpstreamEngine:
    """One upstream server. All methods are for the loop that called `start`."""

    step_age_s = 0.0

    def __init__(self, config: UpstreamConfig, key: str | None, observer: Observer) -> None:
        self.config = config
        self.phase = "loading"
        self.progress = Progress("waiting")
        self.failure: FathomError | None = None
        self._observer = observer
        self._upstream = Upstream(
            config.upstream,
            key,
            connect_timeout_s=config.connect_timeout_s,
            silence_timeout_s=config.silence_timeout_s,
            request_timeout_s=config.request_timeout_s,
        )
        self._kind: Kind = KINDS["openai"]
        self._model = ""
        self._plan: RemotePlan | None = None
        self._text: TextSide | None = None
        self._running: set[str] = set()
        self._idle, self._ended = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._loading: asyncio.Task[RemotePlan] | None = None

    @classmethod
    async def start(
        cls, config: UpstreamConfig, key: str | None, observer: Observer
    ) -> UpstreamEngine:
        """Begin to look for the upstream and return at once, in phase "loading"."""
        engine = cls(config, key, observer)
        engine._loading = asyncio.create_task(engine._load())
        return engine

    async def _load(self) -> RemotePlan:
        self._text = await asyncio.to_thread(text_side, self.config.tokenizer)
        card = await self._card()
        self._model = self.config.model or str(card["id"])
        asked = self.config.upstream_kind
        self._kind = KINDS.get(str(card.get("owned_by")) if asked == "auto" else asked, self._kind)
        if self._kind.settings:
            settings = await self._upstream.settings(self._kind.settings)
            self._kind = as_started(self._kind, settings)
        if self.config.tokenizer and not self._kind.has_ids:
            raise ConfigError(
                "--tokenizer",
                found=f"an upstream of kind {self._kind.name}, which gives no token ids",
                wanted=", ".join(kind.name for kind in KINDS.values() if kind.has_ids),
                fix="leave --tokenizer out, or say what the upstream is with --upstream-kind",
            )
        self._plan = RemotePlan(
            model_path=self._upstream.origin.url,
            served_names=self.config.served_model_name or (self._model,),
            max_model_len=self._context(card),
        )
        self.phase, self.progress = "ready", Progress("ready")
        _log.info("upstream kind=%s model=%s", self._kind.name, self._model)
        return self._plan

    async def _card(self) -> dict[str, Any]:
        """What the upstream's /v1/models says of the model. Waits for an upstream that loads."""
        while True:
            try:
                told = await self._upstream.get_json("/v1/models")
                break
            except (UnavailableError, OverloadedError) as error:
                if not self.progress.detail:
                    _log.warning("waiting for the upstream error=%s", error)
                self.progress = Progress("waiting", str(error))
                await asyncio.sleep(RETRY_S)
        listed = told.get("data") if isinstance(told, dict) else None
        cards = [card for card in listed or () if isinstance(card, dict) and card.get("id")]
        wanted = self.config.model
        for card in cards:
            if wanted in (None, card["id"]):
                return card
        raise ConfigError(
            "--model",
            found=wanted or "an upstream without models",
            wanted=", ".join(str(card["id"]) for card in cards)[:500],
        )

    def _context(self, card: dict[str, Any]) -> int:
        meta = card.get("meta")
        said = [
            self.config.max_model_len,
            card.get("max_model_len"),
            meta.get("n_ctx") or meta.get("n_ctx_train") if isinstance(meta, dict) else None,
            context_of(self.config.tokenizer),
        ]
        for length in said:
            if isinstance(length, int) and length > 1:
                return length
        raise ConfigError(
            "--max-model-len is needed", found="an upstream that does not say its context"
        )

    # --- state -----------------------------------------------------------------------------

    @property
    def plan(self) -> RemotePlan:
        """What is served. Raises: UnavailableError until it is known."""
        if self._plan is None:
            raise self._unavailable()
        return self._plan

    @property
    def text(self) -> TextSide:
        """Raises: UnavailableError until it is loaded."""
        if self._text is None:
            raise self._unavailable()
        return self._text

    @property
    def stats(self) -> CoreStats:
        """Requests under way are all that is known."""
        return CoreStats(running=len(self._running))

    def heartbeat_age_s(self) -> float:
        """An upstream is heard when it is asked."""
        return 0.0

    def flush_cache(self) -> None:
        """Raises: RequestError: the cache is the upstream's."""
        raise RequestError(
            "the prefix cache is the upstream's", code="unsupported_parameter", fix="flush it there"
        )

    def _unavailable(self) -> UnavailableError:
        return UnavailableError(f"the proxy is {self.phase}", found=self.progress.detail)

    async def ready(self) -> RemotePlan:
        """Wait until the upstream can be asked. Raises: the FathomError that prevents it."""
        if self._loading is None:
            raise self._unavailable()
        try:
            return await asyncio.shield(self._loading)
        except FathomError as error:
            self.phase, self.failure = "dead", error
            self._ended.set()
            raise

    async def ended(self) -> FathomError | None:
        """Wait for the end; gives the reason."""
        await self._ended.wait()
        return self.failure

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for those that run; whether all ended in time."""
        self.phase = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._running

    async def close(self) -> None:
        """Hang up; idempotent."""
        self.phase = "dead"
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait((self._loading,))
        await self._upstream.close()
        self._ended.set()

    # --- requests --------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[tuple[Delta, ...], None]:
        """The request's deltas as they come. Closing the generator hangs up on the upstream.

        Nothing is asked twice. Raises: FathomError, before the first delta or between two.
        """
        if self.phase != "ready":
            raise self._unavailable()
        check_request(request.prompt_ids, request.sampling, self.text.tokenizer)
        # Building a grammar takes a while where its schema is large.
        path, body, reader, stream = (
            self._prepare(request)
            if request.asked is None
            else await asyncio.to_thread(self._prepare, request)
        )
        if request.id in self._running:
            raise RequestError("the request's id is in use", param="request_id", found=request.id)
        asking = asyncio.create_task(self._ask(path, body, reader, stream, request.asked))
        self._running.add(request.id)
        self._idle.clear()
        try:
            while not stream.is_finished:
                yield await stream.next()
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
            self._running.discard(request.id)
            if not self._running:
                self._idle.set()
            stream.end(time.monotonic())

    def _prepare(
        self, request: GenerateRequest
    ) -> tuple[str, dict[str, Any], Reader, RequestStream | DeltaStream]:
        now_s = time.monotonic()
        if request.unrendered is not None:
            body = chat.body_of(request, request.unrendered, self._kind, self._model)
            told = DeltaStream(request.sampling, now_s, self._observer)
            sampling, reads_tools = request.sampling, bool(request.unrendered.tools)
            loops, stop_ids = self._loops(sampling, num_bytes=4), sampling.stop_token_ids
            parts = chat.ChatReader(request.id, sampling.n, reads_tools, told.give, loops, stop_ids)
            return chat.PATH, body, parts, told
        tokenizer = self.text.tokenizer
        body = completions.body_of(request, self._kind, self._model, tokenizer)
        # The upstream draws the seed of a request that gives none.
        sequences = split(request, seed=0, eos_ids=tokenizer.eos_ids, arrival_s=now_s)
        stream = RequestStream(
            request, sequences, tokenizer, observer=self._observer, cancel=lambda _: None
        )

        def feed(event: TokenEvent) -> None:
            stream.feed(event, time.monotonic())

        reader = completions.CompletionReader(sequences, feed, self._loops(request.sampling))
        return completions.PATH, body, reader, stream

    def _loops(self, sampling: SamplingParams, num_bytes: int = 1) -> LoopLimits | None:
        """What ends the answer as a loop, where a token is so many pieces; None: nothing does."""
        config = self.config
        if not (sampling.repetition_detection and config.loop_guard_tokens) or sampling.ignore_eos:
            return None
        limits = LoopLimits(config.loop_guard_tokens * num_bytes, config.loop_guard_repeats)
        return replace(limits, max_period=limits.max_period * num_bytes)

    async def _ask(
        self,
        path: str,
        body: dict[str, Any],
        reader: Reader,
        stream: RequestStream | DeltaStream,
        asked: Asked | None,
    ) -> None:
        try:
            events = (EventStream if body["stream"] else WholeAnswer)(reader.event)
            await self._upstream.stream(path, body, events)
            events.end()
            reader.finish()
        except FathomError as error:
            if isinstance(error, RequestError) and asked is not None:
                error.param = as_sent(error.param, asked)
            (stream.fail if reader.has_news else stream.refuse)(error)
        except BrokenStream as error:
            stream.fail(self._upstream.broken(error))
        except Exception as error:
            _log.exception("reading the upstream failed")
            stream.fail(EngineError(f"{type(error).__name__}: {error}"))
