"""Compares merged and delayed streams, and what observers are told, with what went in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest
from fathom.engine.timing import RequestSummary
from fathom.errors import EngineError, OverloadedError
from fathom.server import generation
from fathom.server.config import ServerConfig
from fathom.server.generation import first_or_late, run
from fathom.server.observer import ServerObserver
from fathom.server.state import ServerState
from tests.server.scripted_engine import ScriptedEngine, overloaded

WAIT_S = 10.0


class Source:
    """Numbers, the first of them when it is let go; knows whether it was closed."""

    def __init__(self, count: int, *, fails: bool = False) -> None:
        self.go = asyncio.Event()
        self.is_closed = False
        self._count, self._fails = count, fails

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            await self.go.wait()
            if self._fails:
                raise EngineError("no")
            for number in range(self._count):
                yield number
        finally:
            self.is_closed = True


def requests(count: int) -> list[GenerateRequest]:
    sampling = SamplingParams(max_tokens=50)
    return [
        GenerateRequest(id=f"r{number}", prompt_ids=(5, 6), sampling=sampling)
        for number in range(count)
    ]


def test_prompt_items_come_as_they_are() -> None:
    async def go() -> list[int | None]:
        source = Source(3)
        source.go.set()
        return [item async for item in first_or_late(source.items())]

    assert asyncio.run(go()) == [0, 1, 2]


def test_a_late_first_item_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ADMISSION_WAIT_S", 0.0)

    async def go() -> list[int | None]:
        source = Source(2)
        told = []
        async with asyncio.timeout(WAIT_S):
            async for item in first_or_late(source.items()):
                told.append(item)
                source.go.set()
        return told

    assert asyncio.run(go()) == [None, 0, 1]


def test_a_refusal_in_time_is_raised_before_anything() -> None:
    async def go() -> None:
        source = Source(0, fails=True)
        source.go.set()
        await anext(first_or_late(source.items()))

    with pytest.raises(EngineError):
        asyncio.run(go())


def test_leaving_while_waiting_closes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ADMISSION_WAIT_S", 0.0)

    async def go() -> bool:
        source = Source(1)
        items = source.items()
        async with aclosing(items), aclosing(first_or_late(items)) as late:
            assert await anext(late) is None
        return source.is_closed

    assert asyncio.run(go())


@pytest.mark.parametrize("count", [1, 5])
def test_every_request_gets_all_of_its_news(count: int) -> None:
    async def go() -> dict[int, str]:
        state, engine = ServerState(ServerConfig()), ScriptedEngine(answer="one two three")
        texts = dict.fromkeys(range(count), "")
        async with run(state, engine, requests(count)) as news:
            async for number, deltas in news:
                texts[number] += "".join(delta.text for delta in deltas)
        assert not engine.running
        return texts

    assert asyncio.run(go()) == dict.fromkeys(range(count), "one two three")


@pytest.mark.parametrize("count", [1, 5])
def test_leaving_cancels_all(count: int) -> None:
    async def go() -> int:
        state = ServerState(ServerConfig())
        engine = ScriptedEngine(answer="one two three four", step_s=0.01)
        async with run(state, engine, requests(count)) as news:
            await anext(news)
        assert not engine.running
        return engine.num_cancelled

    assert asyncio.run(go()) == count


def test_one_refusal_of_many_ends_all_and_is_counted() -> None:
    async def go() -> float:
        state = ServerState(ServerConfig())
        engine = ScriptedEngine(refuse=overloaded())
        with pytest.raises(OverloadedError):
            async with run(state, engine, requests(3)) as news:
                await anext(news)
        assert not engine.running
        return state.observer.metrics.counters["admission_rejections"]

    assert asyncio.run(go()) == 1


def test_the_line_of_a_request_has_counts_and_no_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    observer = ServerObserver(logs_requests=True)
    summary = RequestSummary(
        sampling=SamplingParams(stop=("SECRET",)),
        prompt_tokens=5,
        cached_tokens=2,
        generated_tokens=(3,),
        finish_reasons=("abort",),
        queued_s=None,
        first_token_s=None,
        total_s=1.5,
    )
    with caplog.at_level(logging.INFO, logger="fathom"):
        observer.on_end(summary)
    assert "reasons=abort prompt_tokens=5 cached_tokens=2 generated_tokens=3" in caplog.text
    assert "SECRET" not in caplog.text
    assert observer.metrics.finished["abort"] == 1
