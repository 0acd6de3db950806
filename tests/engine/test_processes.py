"""Compares a real engine process on the embedded model with LLM in this process; breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fathom import LLM, SamplingParams
from fathom.config import EngineConfig
from fathom.engine.async_engine import AsyncEngine
from fathom.engine.requests import GenerateRequest
from fathom.errors import CheckpointError, EngineError, FathomError
from tests.engine.waiting import until

T = TypeVar("T")
SMALL: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "max_model_len": 512,
    "kv_cache_memory_bytes": 2**26,
}


def request(name: str, prompt: tuple[int, ...], **sampling: Any) -> GenerateRequest:
    settings = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **sampling}
    return GenerateRequest(id=name, prompt_ids=prompt, sampling=SamplingParams(**settings))


def prompt_of(number: int) -> tuple[int, ...]:
    return tuple(300 + (number * 17 + i * i) % 1500 for i in range(5 + number % 40))


async def tokens_of(engine: AsyncEngine, asked: GenerateRequest) -> tuple[int, ...]:
    ids = [i async for deltas in engine.generate(asked) for d in deltas for i in d.token_ids]
    return tuple(ids)


def is_idle(engine: AsyncEngine) -> bool:
    return engine.stats.running == engine.stats.waiting == 0


class Running:
    """An engine, and the loop that it lives in."""

    def __init__(self, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.engine = self.run(AsyncEngine.start(EngineConfig(**{**SMALL, **settings})))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, 120.0))

    def close(self) -> None:
        self.run(self.engine.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Running]:
    live = Running(**settings)
    try:
        yield live
    finally:
        live.close()


@pytest.fixture(scope="module")
def live() -> Iterator[Running]:
    with running() as made:
        made.run(made.engine.ready())
        yield made


def child_pid(engine: AsyncEngine) -> int:
    pid = engine.pid
    assert pid is not None
    return pid


def test_answers_equal_those_of_one_process(live: Running) -> None:
    prompts = [prompt_of(i) for i in range(6)]
    with LLM(**SMALL, enable_prefix_caching=False) as llm:
        params = request("x", prompts[0]).sampling
        alone = [llm.generate([p], params)[0].outputs[0].token_ids for p in prompts]

    async def together() -> list[tuple[int, ...]]:
        asked = [request(f"r{i}", prompt) for i, prompt in enumerate(prompts)]
        return await asyncio.gather(*(tokens_of(live.engine, one) for one in asked))

    assert live.run(together()) == alone


def test_64_streams_with_random_disconnects_lose_no_page(live: Running) -> None:
    chance = random.Random(4)
    engine = live.engine
    before = live.run(tokens_of(engine, request("before", prompt_of(3))))
    usage_before = engine.stats.kv_usage

    async def consume(number: int) -> None:
        asked = request(f"c{number}", prompt_of(number), max_tokens=chance.randint(1, 30))
        stream = engine.generate(asked)
        leave_after = chance.choice([None, 1, 4])
        count = 0
        async for _ in stream:
            count += 1
            if count == leave_after:
                await stream.aclose()
                return

    async def main() -> None:
        tasks = [asyncio.create_task(consume(number)) for number in range(64)]
        for task in chance.sample(tasks, 16):
            await asyncio.sleep(0.01)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
        await until(lambda: is_idle(engine))

    live.run(main())
    assert engine.num_requests == 0
    assert engine.stats.kv_usage == usage_before
    assert live.run(tokens_of(engine, request("after", prompt_of(3)))) == before


def test_signals_for_the_group_are_the_parents_business(live: Running) -> None:
    async def main() -> tuple[int, ...]:
        answer = asyncio.create_task(tokens_of(live.engine, request("s", prompt_of(1))))
        await asyncio.sleep(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child_pid(live.engine), number)
        return await answer

    assert len(live.run(main())) == 12
    assert live.engine.phase == "ready"


def test_an_idle_engine_sleeps_and_still_has_a_pulse(live: Running) -> None:
    def cpu_s() -> float:
        text = Path(f"/proc/{child_pid(live.engine)}/stat").read_text().rpartition(")")[2]
        user, system = text.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def one_beat() -> None:
        async with asyncio.timeout(2.0):
            await until(lambda: live.engine.heartbeat_age_s() > 0.2)
            await until(lambda: live.engine.heartbeat_age_s() < 0.1)

    began_s = cpu_s()
    for _ in range(3):
        live.run(one_beat())
    assert cpu_s() - began_s < 0.1


def test_a_stopped_engine_shows_by_its_pulse(live: Running) -> None:
    pid = child_pid(live.engine)
    os.kill(pid, signal.SIGSTOP)
    try:
        live.run(until(lambda: live.engine.heartbeat_age_s() > 1.0))
        assert live.engine.phase == "ready"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(live.run(tokens_of(live.engine, request("woken", prompt_of(2))))) == 12
    assert live.engine.heartbeat_age_s() < 0.9


def test_no_secret_reaches_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_API_KEY", "very-secret")
    with running() as made:
        made.run(until(lambda: made.engine.pid is not None))
        folder = Path(f"/proc/{child_pid(made.engine)}")
        assert b"very-secret" not in (folder / "environ").read_bytes()
        assert b"very-secret" not in (folder / "cmdline").read_bytes()


def test_a_killed_engine_ends_every_stream_within_a_second() -> None:
    async def main(engine: AsyncEngine) -> None:
        await engine.ready()
        streams = [
            engine.generate(request(f"k{i}", prompt_of(i), max_tokens=400)) for i in range(8)
        ]
        for stream in streams:
            await anext(stream)
        began_s = time.monotonic()
        os.kill(child_pid(engine), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineError):
                async for _ in stream:
                    pass
        assert time.monotonic() - began_s < 1.0
        failure = await engine.ended()
        assert failure is not None
        assert "SIGKILL" in str(failure)
        with pytest.raises(FathomError, match="dead"):
            await tokens_of(engine, request("late", prompt_of(1)))

    with running() as made:
        made.run(main(made.engine))


def test_an_engine_that_stays_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process kept its clients waiting for as long as it was stopped."""
    with running() as live:
        engine = live.engine

        async def silent() -> FathomError | None:
            await engine.ready()
            os.kill(child_pid(engine), signal.SIGSTOP)
            monkeypatch.setattr("fathom.engine.async_engine.SILENCE_GRACE_S", 1.0 - 300.0)
            with pytest.raises(EngineError, match="not a word"):
                await tokens_of(engine, request("r", prompt_of(1)))
            return await engine.ended()

        assert "not a word" in str(live.run(silent()))


def wait_gone(*pids: int) -> None:
    """Wait for processes, whoever their parent is, to end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            is_gone = bool(poll.poll(10_000))
            os.close(descriptor)
            assert is_gone, f"{pid} still runs"


def test_two_ranks_answer_and_end_with_their_engine() -> None:
    async def main(engine: AsyncEngine) -> tuple[int, ...]:
        await engine.ready()
        assert len(await tokens_of(engine, request("t", prompt_of(1)))) == 12
        pid = child_pid(engine)
        ranks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        assert await engine.ended() is not None
        return tuple(map(int, ranks))

    with running(tensor_parallel_size=2, threads=2) as made:
        ranks = made.run(main(made.engine))
    assert len(ranks) == 2
    wait_gone(*ranks)


def test_a_damaged_checkpoint_is_said_by_the_parent(tmp_path: Path) -> None:
    from fathom.weights.embedded import embedded_path

    for file in embedded_path().iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    whole = (embedded_path() / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with running(model=str(tmp_path)) as made:
        with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
            made.run(made.engine.ready())
        assert caught.value.exit_code == 3
        assert caught.value.fix
        assert made.engine.phase == "dead"


def test_the_engine_does_not_outlive_its_parent() -> None:
    code = (
        "import asyncio\n"
        "from fathom.config import EngineConfig\n"
        "from fathom.engine.async_engine import AsyncEngine\n"
        "async def main():\n"
        "    engine = await AsyncEngine.start(EngineConfig(threads=1, device='cpu'))\n"
        "    while engine.pid is None: await asyncio.sleep(0.01)\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    wait_gone(pid)


def test_the_client_side_imports_no_torch_and_is_quick() -> None:
    code = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import fathom.engine.async_engine\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert time.process_time() - began < 1.0, time.process_time() - began\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
