"""The simulator, set up as a queue, against the closed forms of queueing theory (within 1 %) and
against the queues' own recursions, customer by customer."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from bench.queueing import (
    in_system_s,
    k_servers,
    load,
    one_server,
    recursion_s,
    theory_wait_s,
)
from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.perf.datasets import RandomShape, random_requests
from fathom.perf.plan_shape import LinearTime
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment
from fathom.perf.virtual import VirtualVocabulary
from fathom.perf.workload import Workload, arrive, gamma_arrivals


@pytest.mark.parametrize("is_random", [True, False], ids=["M/M/1", "M/D/1"])
def test_one_server(is_random: bool) -> None:
    """40,000 customers at a utilisation of 0.3: over seeds, the mean time in the system has a
    standard deviation of 0.5 % (M/M/1) and 0.25 % (M/D/1)."""
    given = load(40_000, 0.3, servers=1, mean_tokens=200, seed=2, is_random=is_random)
    found = in_system_s(one_server(given))
    assert found == pytest.approx(recursion_s(given, 1), abs=1e-6)
    theory_s = theory_wait_s(0.3, 1, is_random=is_random) + fmean(given.services_s)
    assert fmean(found) == pytest.approx(theory_s, rel=0.01)


def test_k_servers() -> None:
    """M/M/3. The recursion on the same arrivals and services is the control variate: its mean is
    known, and what the sample's luck does to it, it does to the simulation. What is left is the
    beat of the steps, half a step of 100 a service at most."""
    utilisation, servers = 0.6, 3
    given = load(4_000, utilisation, servers=servers, mean_tokens=100, seed=1, is_random=True)
    found, control = in_system_s(k_servers(given, servers)), recursion_s(given, servers)
    theory_s = theory_wait_s(utilisation, servers, is_random=True) + 1
    estimate_s = fmean(found) - (fmean(control) - theory_s)
    assert estimate_s == pytest.approx(theory_s, rel=0.01)
    # Each waits for the next beat at most, besides what the recursion says.
    late = [one - other for one, other in zip(found, control, strict=True)]
    assert fmean(late) == pytest.approx(0.0, abs=0.01)


def test_littles_law() -> None:
    """Sequences that the scheduler counts, in the mean over time, are the rate of ends times the
    mean time that they run; the same for the queue, up to the step in which a request comes."""
    rng, count, rate = Random(4), 1500, 40.0
    shape = RandomShape(input_len=100, output_len=40, range_ratio=0.8)
    made = random_requests(count, shape, VirtualVocabulary(), rng)
    deployment = Deployment(
        capacity=Capacity(200, 16, 256, 24, 1),
        scheduler=SchedulerConfig(max_model_len=256, max_queued=10**6),
    )
    load = Workload(requests=arrive(made, gamma_arrivals(count, rate, rng)))
    found = simulate(load, deployment, LinearTime(submit_s=0.0, step_s=0.01, token_s=0.0001))
    line, records = found.timeline, found.report.records
    lengths_s = [end - begin for begin, end in zip(line.begin_s, line.end_s, strict=True)]
    running = sum(n * s for n, s in zip(line.running, lengths_s, strict=True))
    waiting = sum(n * s for n, s in zip(line.waiting, lengths_s, strict=True))
    started_s = [one for one in found.started_s if one is not None]
    assert len(started_s) == count
    assert found.stats[0].preemptions == 0
    # Both sides times the duration: areas in sequence seconds.
    ran_s = sum(one.end_s - start for one, start in zip(records, started_s, strict=True))
    queued_s = sum(start - one.due_s for one, start in zip(records, started_s, strict=True))
    assert running == pytest.approx(ran_s, rel=1e-9)
    assert waiting == pytest.approx(queued_s, rel=0.01)
