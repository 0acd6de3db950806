"""An engine that says what it is told to, with the real text side: no model, no process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from fathom.core.types import CoreStats, TokenEvent, TokenLogprobs
from fathom.engine.generation_config import default_sampling
from fathom.engine.limits import check_request
from fathom.engine.messages import Progress
from fathom.engine.requests import GenerateRequest, split
from fathom.engine.streams import RequestStream
from fathom.engine.text_side import TextSide
from fathom.engine.timing import NoObserver, Observer
from fathom.errors import EngineError, FathomError, OverloadedError, UnavailableError
from fathom.spec.deepseek import parse_config
from fathom.spec.formats import FLOAT32
from fathom.spec.parallel import Layout
from fathom.spec.plan import DeploymentPlan
from fathom.text.chat import ChatTemplate, choose_template
from fathom.text.delta import Delta
from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path

MODEL = "scripted"
CONTEXT = 512


def scripted_plan() -> DeploymentPlan:
    """A plan as the engine would resolve it for a small model."""
    import json

    model = parse_config(json.loads((embedded_path() / "config.json").read_text()))
    return DeploymentPlan(
        model_path=str(embedded_path()),
        served_names=(MODEL, "second-name"),
        model=model,
        layout=Layout(),
        device="cpu",
        compute_dtype=FLOAT32,
        kv_dtype=FLOAT32,
        page_size=16,
        num_pages=64,
        max_model_len=CONTEXT,
        max_batch_tokens=256,
        max_sequences=8,
        max_queued=16,
        num_drafts=0,
        run_ahead=1,
        prefix_cache=True,
        threads=1,
        seed=0,
        step_timeout_s=10.0,
        ledger=(),
        decisions=(),
    )


@dataclass
class ScriptedEngine:
    """`answer` is what every choice says, a token a step; `step_s` what a step takes.

    `hold`: nothing comes until it is set. `refuse` is raised instead of taking a request;
    `fails_after` tokens the engine dies.
    """

    answer: str = "The answer is 42."
    step_s: float = 0.0
    hold: asyncio.Event | None = None
    refuse: FathomError | None = None
    fails_after: int | None = None
    template_name: str = "deepseek-v3.1"
    observer: Observer = field(default_factory=NoObserver)

    def __post_init__(self) -> None:
        self.phase = "ready"
        self.progress = Progress("ready")
        self.failure: FathomError | None = None
        self.plan = scripted_plan()
        self.tokenizer = Tokenizer.load(embedded_path())
        self.template: ChatTemplate = choose_template({}, self.template_name)
        self.requests: list[GenerateRequest] = []
        self.running: set[str] = set()
        self.num_cancelled = 0
        self.num_flushes = 0
        self.silent_s = 0.0
        self.step_age_s = 0.0
        self._ended = asyncio.Event()
        self._streams: set[RequestStream] = set()

    @property
    def stats(self) -> CoreStats:
        return CoreStats(running=len(self.running), kv_usage=0.25, prompt_tokens=7)

    @property
    def text(self) -> TextSide:
        return TextSide(self.tokenizer, self.template, default_sampling(embedded_path()))

    def heartbeat_age_s(self) -> float:
        return self.silent_s

    async def ready(self) -> DeploymentPlan:
        return self.plan

    async def ended(self) -> FathomError | None:
        await self._ended.wait()
        return self.failure

    async def drain(self, timeout_s: float) -> bool:
        self.phase = "draining"
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.running and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.005)
        return not self.running

    async def close(self) -> None:
        self.phase = "dead"
        for stream in self._streams:
            stream.fail(EngineError("the engine was told to stop"))
        self._ended.set()

    def flush_cache(self) -> None:
        self.num_flushes += 1

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[tuple[Delta, ...], None]:
        if self.phase != "ready":
            raise UnavailableError(f"the engine is {self.phase}")
        check_request(request.prompt_ids, request.sampling, self.tokenizer)
        if self.refuse is not None:
            raise self.refuse
        loop = asyncio.get_running_loop()
        sequences = split(request, seed=1, eos_ids=self.tokenizer.eos_ids, arrival_s=loop.time())
        cancelled: set[str] = set()
        stream = RequestStream(
            request,
            sequences,
            self.tokenizer,
            observer=self.observer,
            cancel=lambda ids: cancelled.update(ids),
        )
        self.requests.append(request)
        self.running.add(request.id)
        self._streams.add(stream)
        feeding = asyncio.create_task(self._feed(request, stream, cancelled))
        try:
            while not stream.is_finished:
                yield await stream.next()
        finally:
            feeding.cancel()
            self.running.discard(request.id)
            self._streams.discard(stream)
            if not stream.is_finished:
                self.num_cancelled += 1
            stream.end(loop.time())

    async def _feed(
        self, request: GenerateRequest, stream: RequestStream, cancelled: set[str]
    ) -> None:
        """A step for each token: one event for each choice."""
        if self.hold is not None:
            await self.hold.wait()
        answer = self.tokenizer.encode(self.answer, special=True)
        sampling = request.sampling
        limit = min(len(answer) + 1, sampling.max_tokens or len(answer) + 1)
        for position in range(limit):
            if self.fails_after is not None and position >= self.fails_after:
                self.failure = EngineError("the engine was told to die")
                self.phase = "dead"
                stream.fail(self.failure)
                self._ended.set()
                return
            await asyncio.sleep(self.step_s)
            at_end = position == len(answer)
            token = self.tokenizer.eos_ids[0] if at_end else answer[position]
            for index, name in enumerate(stream.ids):
                if name in cancelled:
                    continue
                reason = "stop" if at_end else "length" if position == limit - 1 else None
                event = TokenEvent(
                    id=name,
                    token_ids=(token,),
                    logprobs=(self._scores(token, sampling.logprobs),)
                    if sampling.logprobs is not None
                    else (),
                    prompt_logprobs=tuple(
                        self._scores(one, sampling.prompt_logprobs)
                        for one in request.prompt_ids[1:]
                    )
                    if sampling.prompt_logprobs is not None and not position and not index
                    else (),
                    finish_reason=reason,  # type: ignore[arg-type]
                    num_cached=min(16, len(request.prompt_ids) // 16 * 16),
                    queued_s=0.0 if not position else None,
                )
                stream.feed(event, asyncio.get_running_loop().time())

    @staticmethod
    def _scores(token: int, count: int | None) -> TokenLogprobs:
        others = [(token, -0.25)] + [(other, -3.0) for other in range(40, 60) if other != token]
        return TokenLogprobs(token, -0.25, 1, tuple(others[: count or 0]))


def call_text(*calls: tuple[str, str]) -> str:
    """What a model writes to call tools: of each a name and its arguments."""
    made = (f"{CALL_BEGIN}{name}{SEP}{arguments}{CALL_END}" for name, arguments in calls)
    return f"{CALLS_BEGIN}{''.join(made)}{CALLS_END}"


def overloaded() -> OverloadedError:
    """What a full queue says."""
    return OverloadedError("the queue is full", retry_after_s=3)
