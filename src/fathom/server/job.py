"""A request that is ready to run, and how every dialect answers one: whole or as a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import msgspec

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest
from fathom.errors import RequestError
from fathom.server.answer import Choice, Tally
from fathom.server.config import ServerConfig
from fathom.server.decode import NOTHING_REFUSED, Refusals, decode, read
from fathom.server.exchange import Exchange
from fathom.server.generation import News, first_or_late, run
from fathom.server.limits import renamed
from fathom.server.state import ServedModel, ServerState
from fathom.text.delta import Delta

RequestT = TypeVar("RequestT", bound=msgspec.Struct)
StructT = TypeVar("StructT", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Ask:
    """A body on its way in. `warnings` grows with what is left out where the server is lenient."""

    body: bytes
    model: ServedModel
    config: ServerConfig = field(default_factory=ServerConfig)
    warnings: list[str] = field(default_factory=list)

    def read(self, kind: type[StructT], refusals: Refusals = NOTHING_REFUSED) -> StructT:
        """The body as a `kind`. Raises: RequestError that names the field at fault."""
        return decode(self.body, kind, refusals, self._told)

    def part(self, raw: object, kind: type[StructT], refusals: Refusals, where: str) -> StructT:
        """What stands at `where` in the body, as a `kind`. Raises: RequestError."""
        return read(raw, kind, refusals, self._told, where)

    def sampling(self, names: Mapping[str, str], **fields: Any) -> SamplingParams:
        """The checkpoint's defaults for how to choose tokens, and what the request gave: not None.

        `names`: what the dialect calls fields. Raises: RequestError that names the field.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            params = replace(self.model.defaults, **{"max_tokens": None, **given})
            self.config.check_sampling(params)
        except RequestError as error:
            raise renamed(error, names) from None
        return params

    @property
    def _told(self) -> list[str] | None:
        return self.warnings if self.config.lenient else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[RequestT]):
    """A request: one generation for each prompt, and what every response to it carries."""

    request: RequestT
    generates: tuple[GenerateRequest, ...]
    id: str
    created_s: int
    model_name: str
    is_stream: bool
    warnings: tuple[str, ...] = ()

    def tally(self) -> Tally:
        """Counts of nothing yet."""
        return Tally(len(generate.prompt_ids) for generate in self.generates)


JobT = TypeVar("JobT", bound=Job[Any])


class Events(ABC, Generic[JobT]):
    """A stream, from its deltas; each dialect says what a delta looks like."""

    def __init__(self, job: JobT) -> None:
        self._job = job
        self._tally = job.tally()

    def opening(self, first: Delta | None) -> bytes:
        """What comes before everything else; `first` comes next, where it is there already."""
        return b""

    @abstractmethod
    def of(self, number: int, delta: Delta) -> list[bytes]:
        """What a delta of prompt `number` brings."""

    @abstractmethod
    def closing(self) -> bytes:
        """The end of the stream."""


async def answer(
    state: ServerState,
    exchange: Exchange,
    prepare: Callable[[Ask], JobT],
    whole: Callable[[JobT, Exchange, AsyncGenerator[News, None]], Awaitable[None]],
    events: Callable[[JobT], Events[JobT]],
) -> None:
    """Answer a request, whole or as a stream, for as long as its client stays."""
    state.require()
    body = await exchange.read_json_body(state.config.max_body_bytes)

    async def work() -> None:
        engine, model = state.require()
        ask = Ask(body, model, state.config)
        job = await state.off_loop(lambda: prepare(ask), len(body))
        async with run(state, engine, _of_tenant(job.generates, exchange.tenant)) as news:
            if job.is_stream:
                await _stream(events(job), exchange, news)
            else:
                await whole(job, exchange, news)

    await exchange.while_connected(work(), keep_alive_s=state.config.keep_alive_interval_s)


async def collect(
    job: Job[Any],
    news: AsyncGenerator[News, None],
    wanted: Callable[[Delta], Delta] = lambda delta: delta,
) -> tuple[Choice, Tally]:
    """All of the one choice of a job with one prompt, and its counts; of each delta what is
    `wanted`."""
    choice, tally = Choice(), job.tally()
    async for number, deltas in news:
        for delta in deltas:
            tally.add(number, delta)
            choice.add(wanted(delta))
    return choice, tally


def _of_tenant(generates: tuple[GenerateRequest, ...], tenant: str) -> tuple[GenerateRequest, ...]:
    """The same, with a salt that no other key's requests have.

    A shared prefix cache would tell one key's owner, by its speed, what another has asked.
    """
    if not tenant:
        return generates
    return tuple(
        replace(generate, cache_salt=f"{tenant}/{generate.cache_salt}") for generate in generates
    )


async def _stream(
    events: Events[JobT], exchange: Exchange, news: AsyncGenerator[News, None]
) -> None:
    async with aclosing(first_or_late(news)) as items:
        async for item in items:
            parts = []
            if not exchange.has_started:
                parts = [events.opening(item[1][0] if item and item[1] else None)]
            if item is not None:
                parts += [part for delta in item[1] for part in events.of(item[0], delta)]
            if any(parts) or item is None:
                await exchange.start_stream()
                await exchange.write(b"".join(parts))
    await exchange.start_stream()
    await exchange.write(events.closing(), is_last=True)
