"""A request that is ready to run, and how every dialect answers one: whole or as a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

from msgspec import Struct, json, structs

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest
from fathom.errors import RequestError
from fathom.server.answer import Choice, Tally
from fathom.server.config import ServerConfig
from fathom.server.conversation import Chat
from fathom.server.decode import decode, read
from fathom.server.exchange import Exchange
from fathom.server.generation import News, first_or_late, run
from fathom.server.limits import renaming
from fathom.server.refused import refusals
from fathom.server.state import ServedModel, ServerState
from fathom.text.delta import Delta
from fathom.text.messages import parse_messages, parse_tools

RequestT = TypeVar("RequestT", bound=Struct)
StructT = TypeVar("StructT", bound=Struct)


@dataclass(frozen=True, slots=True)
class Ask:
    """A body on its way in. `warnings` grows with what is left out where the server is lenient."""

    body: bytes
    model: ServedModel
    config: ServerConfig = field(default_factory=ServerConfig)
    warnings: list[str] = field(default_factory=list)

    def read(self, kind: type[StructT], *tables: str) -> StructT:
        """The body as a `kind`; `tables` name what is refused of it.

        Raises: RequestError that names the field at fault.
        """
        return decode(self.body, kind, refusals(*tables), self._told)

    def part(
        self,
        raw: dict[str, Any],
        kinds: Mapping[str, type[Struct]],
        table: str,
        where: str,
        *,
        default: str | None = None,
        noun: str = "an item",
        fix: str = "",
    ) -> Struct:
        """What stands at `where` in the body, by the struct that its type, or `default`, names.

        Raises: RequestError.
        """
        name = raw.get("type") or default
        kind = kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise RequestError(
                f"{where} is {noun} of a kind that cannot be read here",
                param=f"{where}.type",
                code="unsupported_content",
                found=repr(raw.get("type"))[:80],
                wanted=", ".join(kinds),
                fix=fix,
            )
        return read(raw, kind, refusals(table), self._told, where)

    def leave_out_unknown(self, messages: object, tools: object) -> None:
        """Take fields that a conversation in OpenAI's form cannot have out of it, and warn of them,
        where the server is lenient. Raises: RequestError for what else is wrong with it."""
        if self.config.lenient:
            parse_messages(messages, told=self.warnings)
            parse_tools(tools, told=self.warnings)

    def sampling(self, names: Mapping[str, str], source: Struct, **fields: Any) -> SamplingParams:
        """The checkpoint's defaults for how to choose tokens, and what the request gave: not None.

        `source` has the fields that go by their own names, `fields` are the others; `names`: what
        the dialect calls fields. Raises: RequestError that names the field.
        """
        same = SamplingParams.__dataclass_fields__.keys() & set(source.__struct_fields__)
        asked = {**{name: getattr(source, name) for name in same}, **fields}
        given = {name: value for name, value in asked.items() if value is not None}
        with renaming(names):
            params = replace(self.model.defaults, **{"max_tokens": None, **given})
            self.config.check_sampling(params)
        return params

    @property
    def _told(self) -> list[str] | None:
        return self.warnings if self.config.lenient else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[RequestT]):
    """A request: one generation for each prompt, and what every response to it carries.

    `thinking`: how the wish for reasoning was understood. `is_single_call`: no more are shown.
    `names`: what the dialect calls fields that the engine may refuse.
    """

    request: RequestT
    generates: tuple[GenerateRequest, ...]
    id: str
    created_s: int
    model_name: str
    is_stream: bool
    warnings: tuple[str, ...]
    thinking: dict[str, Any] | None = None
    is_single_call: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, ask: Ask, request: Any, id: str, generates: Iterable[GenerateRequest], **more: Any
    ) -> Self:
        """What `ask` has become; `more`: fields that not every job has."""
        return cls(
            request=request,
            generates=tuple(generates),
            id=id,
            created_s=int(time.time()),
            model_name=getattr(request, "model", None) or ask.model.name,
            is_stream=request.stream,
            warnings=tuple(ask.warnings),
            **more,
        )

    @classmethod
    def of_chat(cls, ask: Ask, request: Any, chat: Chat, **more: Any) -> Self:
        """The same of a conversation. Raises: RequestError."""
        ask.leave_out_unknown(chat.messages, chat.tools)
        return cls.of(
            ask,
            request,
            chat.id,
            (chat.request(ask.model, ask.config),),
            thinking=chat.thinking_echo(ask.model),
            is_single_call=chat.tool_choice.is_single,
            **more,
        )

    def tally(self) -> Tally:
        """Counts of nothing yet."""
        return Tally(len(generate.prompt_ids) for generate in self.generates)


JobT = TypeVar("JobT", bound=Job[Any])


class Reply(ABC, Generic[JobT]):
    """An answer, from its deltas, whole or as a stream; each dialect says what it looks like."""

    def __init__(self, job: JobT) -> None:
        self._job = job
        self._tally = job.tally()
        self._choices = [[Choice() for _ in range(one.sampling.n)] for one in job.generates]

    def take(self, number: int, delta: Delta) -> Delta:
        """What a client is shown of a delta of prompt `number`, which is counted."""
        shown = self.shown(delta)
        self._tally.add(number, shown)
        return shown

    def shown(self, delta: Delta) -> Delta:
        """What a client is shown of a delta."""
        if not (self._job.is_single_call and delta.tool_calls):
            return delta
        return structs.replace(
            delta, tool_calls=tuple(one for one in delta.tool_calls if not one.index)
        )

    def add(self, number: int, delta: Delta) -> None:
        """Keep what is shown of a delta of prompt `number`, for the whole answer."""
        self._choices[number][delta.index].add(delta)

    @abstractmethod
    def whole(self) -> Any:
        """The whole answer, from what was added, as JSON."""

    def opening(self, first: Delta | None) -> bytes:
        """What comes before everything else; `first` comes next, where it is there already."""
        return b""

    @abstractmethod
    def of(self, number: int, delta: Delta) -> list[bytes]:
        """What comes in a stream of what is shown of a delta of prompt `number`."""

    @abstractmethod
    def closing(self) -> bytes:
        """The end of the stream."""


async def answer(
    state: ServerState,
    exchange: Exchange,
    prepare: Callable[[Ask], JobT],
    reply: Callable[[JobT], Reply[JobT]],
) -> None:
    """Answer a request, whole or as a stream, for as long as its client stays."""
    state.require()
    body = await exchange.read_json_body(state.config.max_body_bytes)

    async def work() -> None:
        engine, model = state.require()
        ask = Ask(body, model, state.config)
        job = await state.off_loop(lambda: prepare(ask), len(body))
        generates = _of_tenant(job.generates, exchange.tenant)
        with renaming(job.names):
            async with run(state, engine, generates) as news:
                await (_stream if job.is_stream else _whole)(reply(job), exchange, news)

    await exchange.while_connected(work(), keep_alive_s=state.config.keep_alive_interval_s)


async def tell(
    state: ServerState, exchange: Exchange, work: Callable[[Ask], dict[str, Any]]
) -> None:
    """Answer a request for which nothing is generated: with what `work` gives, and its warnings."""
    body = await exchange.read_json_body(state.config.max_body_bytes)
    ask = Ask(body, state.require()[1], state.config)

    def written() -> bytes:
        told = work(ask)
        return json.encode({**told, "warnings": ask.warnings} if ask.warnings else told)

    await exchange.respond(200, await state.off_loop(written, len(body)))


def _of_tenant(generates: tuple[GenerateRequest, ...], tenant: str) -> tuple[GenerateRequest, ...]:
    """The same, with a salt that no other key's requests have.

    A shared prefix cache would tell one key's owner, by its speed, what another has asked.
    """
    if not tenant:
        return generates
    return tuple(
        replace(generate, cache_salt=f"{tenant}/{generate.cache_salt}") for generate in generates
    )


async def _whole(reply: Reply[Any], exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    async for number, deltas in news:
        for delta in deltas:
            reply.add(number, reply.take(number, delta))
    await exchange.give(reply.whole())


async def _stream(reply: Reply[Any], exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    async with aclosing(first_or_late(news)) as items:
        async for item in items:
            parts = []
            if not exchange.has_started:
                parts = [reply.opening(item[1][0] if item and item[1] else None)]
            number, deltas = item or (0, ())
            parts += [part for one in deltas for part in reply.of(number, reply.take(number, one))]
            if any(parts) or item is None:
                await exchange.start_stream()
                await exchange.write(b"".join(parts))
    await exchange.start_stream()
    await exchange.write(reply.closing(), is_last=True)
