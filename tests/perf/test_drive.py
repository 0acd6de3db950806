"""Compares driven runs, on a clock that jumps, with the arithmetic of queues."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.perf.drive import Answer, drive
from fathom.perf.report import Report, Statistics
from fathom.perf.workload import LoadRequest, Workload, gamma_arrivals
from tests.perf.virtual_clock import VirtualClock

SERVICE_S = 0.05
STALL_S = (4.0, 9.0)


class OneAtATime:
    """A server that answers in turn, each request in `SERVICE_S`, and stands still for a while."""

    def __init__(self, clock: VirtualClock, *, stalls: bool) -> None:
        self._clock, self._stalls = clock, stalls
        self._lock = asyncio.Lock()
        self._began_s = clock.now_s()
        self.running = self.most = 0

    async def __call__(self, index: int, request: LoadRequest) -> Answer:
        self.running += 1
        self.most = max(self.most, self.running)
        async with self._lock:
            now_s = self._clock.now_s() - self._began_s
            if self._stalls and STALL_S[0] <= now_s < STALL_S[1]:
                await self._clock.sleep(STALL_S[1] - now_s)
            await self._clock.sleep(SERVICE_S)
        self.running -= 1
        end_s = self._clock.now_s()
        return Answer(end_s, times_s=[end_s], prompt_tokens=1, output_tokens=1)


def workload(times_s: list[float], max_concurrency: int | None = None) -> Workload:
    requests = tuple(LoadRequest(prompt="", prompt_len=1, output_len=1, at_s=at) for at in times_s)
    return Workload(requests=requests, max_concurrency=max_concurrency)


def run(load: Workload, *, stalls: bool = False) -> tuple[Report, OneAtATime]:
    async def work() -> tuple[Report, OneAtATime]:
        clock = VirtualClock()
        server = OneAtATime(clock, stalls=stalls)
        return await clock.run(drive(load, server, clock)), server

    return asyncio.run(work())


def queue(times_s: list[float], *, stalls: bool) -> list[float]:
    """When each request of a single queue ends, by Lindley's recursion."""
    ends: list[float] = []
    for arrival in times_s:
        begin = max(arrival, ends[-1] if ends else 0.0)
        if stalls and STALL_S[0] <= begin < STALL_S[1]:
            begin = STALL_S[1]
        ends.append(begin + SERVICE_S)
    return ends


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_latencies_are_the_queues_own(seed: int, limit: int | None, stalls: bool) -> None:
    """Whether requests wait at the server or in the client for one of `limit` places, the public
    waits equally long."""
    times_s = gamma_arrivals(150, 10.0, Random(seed))
    report, server = run(workload(times_s, limit), stalls=stalls)
    wanted = [end - due for end, due in zip(queue(times_s, stalls=stalls), times_s, strict=True)]
    assert report.samples_s("e2el") == pytest.approx(wanted)
    assert report.samples_s("ttft") == pytest.approx(wanted)
    assert [one.due_s for one in report.records] == pytest.approx(times_s)
    assert report.peak_concurrency() == server.most <= (limit or 150)
    assert report.duration_s == pytest.approx(max(queue(times_s, stalls=stalls)))


def test_a_stall_is_not_hidden_by_the_limit() -> None:
    """Timers that began when a place became free reported a quarter of the real latency in another
    client: with one place, one request in a hundred sees the stall and 50 were due during it."""
    times_s = gamma_arrivals(150, 10.0, Random(0))
    report, _ = run(workload(times_s, 1), stalls=True)
    late = Statistics.of(report.samples_s("e2el"), (90.0,)).percentiles[0][1]
    hidden = Statistics.of(report.samples_s("e2el_from_send"), (90.0,)).percentiles[0][1]
    assert late > 2.0
    assert hidden == pytest.approx(SERVICE_S)
    closed, _ = run(workload([0.0] * 150, 1), stalls=True)
    assert closed.is_closed
    assert Statistics.of(closed.samples_s("e2el"), (90.0,)).percentiles[0][1] < 0.1


@given(st.integers(1, 30), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_a_closed_loop_keeps_its_places_full(count: int, limit: int) -> None:
    report, server = run(workload([0.0] * count, limit))
    assert server.most == min(count, limit)
    assert report.duration_s == pytest.approx(count * SERVICE_S)
    assert len(report.complete) == count
    assert all(one.due_s == one.sent_s for one in report.records)


def test_without_rate_and_limit_all_are_sent_at_once() -> None:
    report, server = run(workload([0.0] * 20))
    assert server.most == 20
    assert [one.sent_s for one in report.records] == [0.0] * 20
    assert not report.is_closed


def test_follow_ups_come_after_the_answer_and_the_thinking() -> None:
    first = LoadRequest(prompt="", prompt_len=1, output_len=1, at_s=1.0)
    second = LoadRequest(prompt="", prompt_len=1, output_len=1, at_s=2.5, after=0)
    third = LoadRequest(prompt="", prompt_len=1, output_len=1, at_s=0.5, after=1)
    report, _ = run(Workload(requests=(first, second, third)))
    assert [one.due_s for one in report.records] == pytest.approx(
        [1.0, 1.0 + SERVICE_S + 2.5, 1.0 + 2 * SERVICE_S + 3.0]
    )


def test_a_stopped_run_keeps_what_it_has() -> None:
    async def work() -> Report:
        clock, stop = VirtualClock(), asyncio.Event()
        server = OneAtATime(clock, stalls=False)

        async def send(index: int, request: LoadRequest) -> Answer:
            if index == 5:
                stop.set()
                await asyncio.Event().wait()
            return await server(index, request)

        load = workload([float(at) for at in range(9)])
        return await clock.run(drive(load, send, clock, stop=stop))

    report = asyncio.run(work())
    assert report.is_interrupted
    assert [one.error_kind for one in report.records] == ["", "", "", "", "", "interrupted"]
    assert len(report.complete) == 5


def test_a_fault_of_the_sender_is_raised() -> None:
    async def send(index: int, request: LoadRequest) -> Answer:
        raise ZeroDivisionError

    async def work() -> None:
        clock = VirtualClock()
        await clock.run(drive(workload([0.0, 5.0]), send, clock))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(work())
