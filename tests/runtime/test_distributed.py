"""Puts two ranks under the executor contract, compares them with one, and kills them."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fathom.core.executor import Executor
from fathom.core.types import SamplingParams
from fathom.errors import CheckpointError, EngineError
from fathom.runtime.build import build_executor, capacity_of
from fathom.runtime.executors.distributed import DistributedExecutor
from tests.core.executor_conformance import Driver, ExecutorCase, SamplingConformance
from tests.runtime.tiny_plans import VOCAB, tiny_plan


def _rank_pids(parent: int | str = "self") -> dict[int, int]:
    """A process's rank children, by rank; those that have ended and were reaped are gone."""
    pids: dict[int, int] = {}
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in children.read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"fathom.runtime.rank" in command:
                pids[int(command[command.index(b"--rank") + 1])] = int(pid)
    return pids


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_behind() -> object:
    yield
    assert not _rank_pids()


class TestTwoRanks(SamplingConformance):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _case(cls, tiny_checkpoint: Path) -> None:
        def build(depth: int) -> Executor:
            return build_executor(tiny_plan(tiny_checkpoint, tp=2, num_drafts=1, depth=depth))

        cls.case = ExecutorCase(build, VOCAB, num_drafts=1)


def test_two_ranks_give_one_ranks_tokens(tiny_checkpoint: Path) -> None:
    answers = []
    for tp in (1, 2):
        driver = Driver(
            ExecutorCase(lambda _, tp=tp: build_executor(tiny_plan(tiny_checkpoint, tp=tp)), VOCAB)
        )
        try:
            answers.append(
                [
                    driver.naive(driver.prompt(11, salt), 12, sampling=sampling, seed=salt)
                    for salt in range(2)
                    for sampling in (
                        SamplingParams(temperature=0.0),
                        SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2),
                    )
                ]
            )
        finally:
            driver.executor.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_rank_is_named_within_a_second(tiny_checkpoint: Path, victim: int) -> None:
    driver = Driver(ExecutorCase(lambda _: build_executor(tiny_plan(tiny_checkpoint, tp=2)), VOCAB))
    pids = _rank_pids()
    try:
        driver.naive((1, 2, 3), 2)
        os.kill(pids[victim], signal.SIGSTOP)  # so that the other one waits for it in the step
        handle = driver.submit(driver.first((1, 2, 3)))
        os.kill(pids[victim], signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(EngineError, match=f"rank {victim} .pid {pids[victim]}. killed by SIG"):
            handle.wait(30)
        assert time.monotonic() - killed < 1.0
        with pytest.raises(EngineError, match=f"rank {victim} "):
            driver.submit()
    finally:
        driver.executor.close()
    assert not _rank_pids()


def test_ranks_that_do_not_arrive_in_time_are_named(tiny_checkpoint: Path) -> None:
    plan = tiny_plan(tiny_checkpoint, tp=2)
    with pytest.raises(EngineError, match=r"2 of 2 ranks not ready after 0\.05 s.*rank 0.*rank 1"):
        DistributedExecutor(plan, capacity_of(plan), start_timeout_s=0.05)
    assert not _rank_pids()


def test_a_bad_checkpoint_is_the_error_that_one_rank_would_raise(tmp_path: Path) -> None:
    plan = dataclasses.replace(tiny_plan(tmp_path), layout=tiny_plan(tmp_path, tp=2).layout)
    with pytest.raises(CheckpointError) as alone:
        build_executor(tiny_plan(tmp_path))
    with pytest.raises(CheckpointError) as together:
        build_executor(plan)
    assert str(together.value) == str(alone.value)
    assert not _rank_pids()


_SERVE = """
import sys
from pathlib import Path
from tests.runtime.tiny_plans import tiny_plan
from fathom.runtime.build import build_executor
executor = build_executor(tiny_plan(Path(sys.argv[1]), tp=2))
print("ready", flush=True)
sys.stdin.read()
"""


def test_ranks_end_when_their_engine_is_killed(tiny_checkpoint: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _SERVE, str(tiny_checkpoint)]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "ready\n"
        pids = _rank_pids(engine.pid)
        assert sorted(pids) == [0, 1]
        ends = [os.pidfd_open(pid) for pid in pids.values()]
        engine.kill()
    for end in ends:
        assert select.select([end], [], [], 20)[0], "a rank is still there"
        os.close(end)
