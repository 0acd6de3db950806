"""Compares what AsyncEngine streams, over a simulated engine, with the pseudo model's own loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fathom.config import EngineConfig
from fathom.core.types import SamplingParams
from fathom.engine.async_engine import AsyncEngine
from fathom.engine.requests import GenerateRequest
from fathom.engine.timing import NoObserver, RequestSummary
from fathom.errors import (
    CapacityError,
    ContextLengthError,
    EngineError,
    FathomError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from fathom.text.delta import Delta
from tests.core.simulated import PseudoModel
from tests.engine.simulated_engine import SimulatedChild, naive_tokens
from tests.engine.waiting import until

MODEL = PseudoModel(vocab_size=1000)
PROMPT = tuple(range(10, 60))


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, 60.0)

    asyncio.run(bounded())


@asynccontextmanager
async def started(child: SimulatedChild, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(EngineConfig(), launch=child.launch, **options)
    try:
        await engine.ready()
        yield engine
    finally:
        await engine.close()
    assert engine.phase == "dead"


def request(name: str = "r", prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> GenerateRequest:
    settings = {"max_tokens": 20, "seed": 3, **sampling}
    return GenerateRequest(id=name, prompt_ids=prompt, sampling=SamplingParams(**settings))


async def collect(engine: AsyncEngine, asked: GenerateRequest) -> list[Delta]:
    return [delta async for deltas in engine.generate(asked) for delta in deltas]


def tokens_of(deltas: list[Delta], index: int = 0) -> tuple[int, ...]:
    return tuple(t for delta in deltas if delta.index == index for t in delta.token_ids)


def test_streams_the_models_own_tokens() -> None:
    async def main() -> None:
        async with started(SimulatedChild(model=MODEL)) as engine:
            deltas = await collect(engine, request())
            expected = naive_tokens(MODEL, PROMPT, request().sampling, seed=3)
            assert tokens_of(deltas) == expected
            assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
            assert deltas[-1].finish_reason == "length"
            text = "".join(delta.text for delta in deltas)
            assert text == engine.text.tokenizer.decode(expected, skip_special_tokens=True)
            assert engine.stats.generated_tokens >= 20
            assert engine.num_requests == 0

    run(main())


def test_choices_have_their_own_seeds() -> None:
    async def main() -> None:
        async with started(SimulatedChild(model=MODEL)) as engine:
            deltas = await collect(engine, request(n=3))
            for index in range(3):
                expected = naive_tokens(MODEL, PROMPT, request().sampling, seed=3 + index)
                assert tokens_of(deltas, index) == expected

    run(main())


def test_requests_without_a_seed_follow_from_the_engines() -> None:
    async def once() -> list[tuple[int, ...]]:
        async with started(SimulatedChild(model=MODEL)) as engine:
            return [tokens_of(await collect(engine, request(name, seed=None))) for name in "abc"]

    async def main() -> None:
        first, second = await once(), await once()
        assert first == second
        assert len(set(first)) == 3

    run(main())


def test_a_stop_string_ends_the_answer_and_the_sequence() -> None:
    async def main() -> None:
        child = SimulatedChild(model=MODEL)
        async with started(child) as engine:
            whole = "".join(d.text for d in await collect(engine, request()))
            stop = whole[5:8]
            deltas = await collect(engine, request("s", stop=stop, max_tokens=900))
            assert "".join(d.text for d in deltas) == whole[: whole.index(stop)]
            assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
            await until(lambda: not child.core.has_work)
            assert engine.stats.generated_tokens < 900

    run(main())


def test_an_id_that_is_used_again_gets_its_own_answer() -> None:
    """Tokens on their way to a client that had left came to the next one that used its id."""

    async def main() -> None:
        async with started(SimulatedChild(model=MODEL)) as engine:
            expected = naive_tokens(MODEL, PROMPT, request().sampling, seed=3)
            for _ in range(50):
                left = engine.generate(request(prompt=PROMPT[:9], max_tokens=900))
                await anext(left)
                await left.aclose()
                assert tokens_of(await collect(engine, request())) == expected

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_64_streams_with_random_disconnects_leave_nothing_behind(seed: int) -> None:
    chance = random.Random(seed)

    async def consume(engine: AsyncEngine, name: str) -> None:
        asked = request(name, prompt=PROMPT[: chance.randint(1, 50)], n=chance.randint(1, 3))
        leave_after = chance.choice([None, 0, 1, 3])
        stream = engine.generate(asked)
        seen: list[Delta] = []
        async for deltas in stream:
            seen.extend(deltas)
            if leave_after is not None and len(seen) >= leave_after:
                await stream.aclose()
                return
        for index in range(asked.sampling.n):
            expected = naive_tokens(MODEL, asked.prompt_ids, asked.sampling, 3 + index)
            assert tokens_of(seen, index) == expected

    async def main() -> None:
        child = SimulatedChild(model=MODEL, step_s=0.0005)
        async with started(child) as engine:
            tasks = [asyncio.create_task(consume(engine, f"r{i}")) for i in range(64)]
            for task in chance.sample(tasks, 20):
                await asyncio.sleep(0.002)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [r for r in results if r is not None] == [
                r for r in results if isinstance(r, asyncio.CancelledError)
            ]
            await until(lambda: not child.core.has_work)
            await until(lambda: engine.stats.running == engine.stats.waiting == 0)
            assert engine.num_requests == 0
            assert engine.stats == child.core.stats()

    run(main())


def refused_by(asked: GenerateRequest, **options: Any) -> FathomError:
    found: list[FathomError] = []

    async def main() -> None:
        child = SimulatedChild(model=MODEL, max_model_len=100, max_queued=2)
        async with started(child, **options) as engine:
            try:
                await collect(engine, asked)
            except FathomError as error:
                found.append(error)
            # The engine goes on, and the refused request left nothing.
            assert len(tokens_of(await collect(engine, request("next", max_tokens=5)))) == 5
            assert engine.num_requests == 0

    run(main())
    return found[0]


def test_what_can_never_fit_is_refused_with_the_number_that_would() -> None:
    error = refused_by(request(max_tokens=51))
    assert isinstance(error, ContextLengthError)
    assert error.param == "max_tokens"
    assert "50" in error.wanted


def test_a_full_queue_is_refused_whole() -> None:
    error = refused_by(request(n=3))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s >= 1


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request(prompt=(1, 10**6)), "prompt"),
        (request(logit_bias={10**6: 1.0}), "logit_bias"),
        (request(stop_token_ids=[10**6]), "stop_token_ids"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(asked: GenerateRequest, param: str) -> None:
    error = refused_by(asked)
    assert isinstance(error, RequestError)
    assert error.param == param


def test_an_id_in_use_is_refused() -> None:
    async def main() -> None:
        async with started(SimulatedChild(model=MODEL, step_s=0.001)) as engine:
            stream = engine.generate(request(max_tokens=500))
            await anext(stream)
            with pytest.raises(RequestError, match="in use"):
                await collect(engine, request())
            assert engine.num_requests == 1
            await stream.aclose()
            assert engine.num_requests == 0

    run(main())


def test_a_failed_step_ends_every_stream_with_its_error() -> None:
    async def main() -> None:
        child = SimulatedChild(model=MODEL, fail_at_step=5)
        async with started(child) as engine:
            results = await asyncio.gather(
                *(collect(engine, request(f"r{i}")) for i in range(4)), return_exceptions=True
            )
            for result in results:
                assert isinstance(result, EngineError)
                assert "a kernel failed" in str(result)
            assert isinstance(await engine.ended(), EngineError)
            assert "a kernel failed" in str(engine.failure)
            with pytest.raises(UnavailableError, match="dead"):
                await collect(engine, request("late"))

    run(main())


def test_an_engine_that_hangs_up_ends_every_stream_at_once() -> None:
    async def main() -> None:
        child = SimulatedChild(model=MODEL, step_s=0.001)
        async with started(child) as engine:
            streams = [engine.generate(request(f"r{i}", max_tokens=900)) for i in range(8)]
            for stream in streams:
                await anext(stream)
            began_s = time.monotonic()
            child.kill()
            for stream in streams:
                with pytest.raises(EngineError, match="stopped before the answer ended"):
                    async for _ in stream:
                        pass
            assert time.monotonic() - began_s < 1.5
            assert engine.phase == "dead"
            assert engine.num_requests == 0

    run(main())


def test_a_load_error_is_given_whole() -> None:
    error = CapacityError("model", found="9 GB", wanted="8 GB", fix="a smaller one")

    async def main() -> None:
        engine = await AsyncEngine.start(
            EngineConfig(), launch=SimulatedChild(load_error=error).launch
        )
        assert engine.phase == "loading"
        with pytest.raises(UnavailableError, match="loading"):
            await collect(engine, request())
        with pytest.raises(CapacityError) as caught:
            await engine.ready()
        assert str(caught.value) == str(error)
        assert engine.phase == "dead"
        await engine.close()
        await engine.close()

    run(main())


def test_a_missing_model_is_a_load_error() -> None:
    async def main() -> None:
        engine = await AsyncEngine.start(
            EngineConfig(model="/nowhere/at/all"), launch=SimulatedChild().launch
        )
        with pytest.raises(FathomError, match="/nowhere/at/all"):
            await engine.ready()
        await engine.close()

    run(main())


def test_draining_lets_the_running_finish_and_takes_no_more() -> None:
    async def main() -> None:
        async with started(SimulatedChild(model=MODEL, step_s=0.001)) as engine:
            running = asyncio.create_task(collect(engine, request(max_tokens=100)))
            await until(lambda: engine.num_requests == 1)
            draining = asyncio.create_task(engine.drain(10.0))
            await until(lambda: engine.phase == "draining")
            with pytest.raises(UnavailableError, match="draining"):
                await collect(engine, request("late"))
            assert await draining
            assert len(tokens_of(await running)) == 100

    run(main())


def test_a_drain_has_a_deadline_and_close_ends_what_is_left() -> None:
    async def main() -> None:
        async with started(SimulatedChild(model=MODEL, step_s=0.005)) as engine:
            running = asyncio.create_task(collect(engine, request(max_tokens=900)))
            await until(lambda: engine.num_requests == 1)
            assert not await engine.drain(0.05)
            await engine.close()
            with pytest.raises(EngineError):
                await running
            assert await engine.ended() is None

    run(main())


class Recorder(NoObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.num_next = 0
        self.num_computed = 0
        self.ends: list[RequestSummary] = []

    def on_first_token(self, elapsed_s: float) -> None:
        self.first.append(elapsed_s)

    def on_next_token(self, elapsed_s: float, num_tokens: int) -> None:
        assert elapsed_s >= 0
        self.num_next += num_tokens

    def on_step(self, num_tokens: int) -> None:
        self.num_computed += num_tokens

    def on_end(self, summary: RequestSummary) -> None:
        self.ends.append(summary)


def test_the_observer_hears_of_every_request_once() -> None:
    recorder = Recorder()

    async def main() -> None:
        child = SimulatedChild(model=MODEL, max_model_len=200)
        async with started(child, observer=recorder) as engine:
            await collect(engine, request("a", n=2))
            stream = engine.generate(request("b"))
            await anext(stream)
            await stream.aclose()
            with pytest.raises(ContextLengthError):
                await collect(engine, request("c", max_tokens=500))

    run(main())
    whole, left = recorder.ends
    assert whole.generated_tokens == (20, 20)
    assert whole.finish_reasons == ("length", "length")
    assert whole.prompt_tokens == 50
    assert whole.first_token_s is not None
    assert 0 < whole.first_token_s <= whole.total_s
    assert whole.queued_s is not None
    assert left.finish_reasons == ("abort",)
    assert left.cached_tokens > 0
    assert len(recorder.first) == 2
    assert recorder.num_next >= 38
    # Two choices of 20 tokens: a prompt that the second finds cached, in part, and 19 steps each.
    assert recorder.num_computed >= 50 + 2 * 19
