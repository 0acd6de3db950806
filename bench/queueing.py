"""The simulator as a queue, compared with queueing theory: M/M/1, M/D/1 and M/M/k.

    python bench/queueing.py [--output FILE]

The scheduler is set up so that it acts as the queue. One server: one sequence at a time, whose
prompt is computed in one step; the step takes a time proportional to the prompt. k servers: at most
k sequences, a token a step, steps of constant length; the answers' lengths are the service times.
Arrivals are a Poisson process whose last time is pinned, and service times are stratified: both
have their exact distribution, and means that do not vary. `tests/perf/test_queueing.py` runs small
cases; this file runs those whose waiting times are known to 1 % only after long (the standard
deviations over seeds are those of 60 runs of the queues' own recursions).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path
from random import Random
from statistics import fmean

from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.perf.plan_shape import LinearTime
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment, Simulation
from fathom.perf.virtual import Runs
from fathom.perf.workload import LoadRequest, Workload, gamma_arrivals

MEAN_PROMPT = 500
"""Tokens of a mean service of one server: whole tokens are then fine enough."""


@dataclass(frozen=True)
class Load:
    """Arrivals, and services in whole tokens, of a queue whose mean service is 1 second."""

    arrivals_s: list[float]
    tokens: list[int]
    token_s: float

    @property
    def services_s(self) -> list[float]:
        """How long each is served."""
        return [count * self.token_s for count in self.tokens]


def load(
    count: int, utilisation: float, *, servers: int, mean_tokens: int, seed: int, is_random: bool
) -> Load:
    """Poisson arrivals; exponential (stratified, rounded to tokens) or constant services."""
    arrivals = gamma_arrivals(count, utilisation * servers, Random(f"{seed} arrivals"))
    if not is_random:
        return Load(arrivals, [mean_tokens] * count, 1 / mean_tokens)
    quantiles = ((index + 0.5) / count for index in range(count))
    tokens = [max(1, round(-mean_tokens * math.log1p(-one))) for one in quantiles]
    Random(f"{seed} services").shuffle(tokens)
    return Load(arrivals, tokens, 1 / mean_tokens)


def one_server(given: Load) -> Simulation:
    """The scheduler as one server."""
    longest = max(given.tokens) + 1
    deployment = Deployment(
        capacity=Capacity(2, longest, longest, 1, 2),
        scheduler=SchedulerConfig(max_model_len=longest, max_queued=10**9, prefix_cache=False),
    )
    requests = tuple(
        LoadRequest(prompt=Runs(((0, count),)), prompt_len=count, output_len=1, at_s=at_s)
        for at_s, count in zip(given.arrivals_s, given.tokens, strict=True)
    )
    cost = LinearTime(submit_s=0.0, step_s=0.0, token_s=given.token_s)
    return simulate(Workload(requests=requests), deployment, cost)


def k_servers(given: Load, servers: int) -> Simulation:
    """The scheduler as k servers, which begin services at the same beat."""
    longest = max(given.tokens) + 1
    deployment = Deployment(
        # A page for each, and one more for each that runs, which admission keeps free.
        capacity=Capacity(2 * servers, longest, servers, servers, 1),
        scheduler=SchedulerConfig(max_model_len=longest, max_queued=10**9, prefix_cache=False),
    )
    requests = tuple(
        LoadRequest(prompt=Runs(((0, 1),)), prompt_len=1, output_len=count, at_s=at_s)
        for at_s, count in zip(given.arrivals_s, given.tokens, strict=True)
    )
    cost = LinearTime(submit_s=0.0, step_s=given.token_s, token_s=0.0)
    return simulate(Workload(requests=requests), deployment, cost)


def recursion_s(given: Load, servers: int) -> list[float]:
    """Seconds in the system of each customer of a first-come first-served queue.

    Source: Lindley (1952) for one server, Kiefer and Wolfowitz (1955) for more.
    """
    free_s = [0.0] * servers
    times = []
    for at_s, service_s in zip(given.arrivals_s, given.services_s, strict=True):
        end_s = max(free_s[0], at_s) + service_s
        heapreplace(free_s, end_s)
        times.append(end_s - at_s)
    return times


def in_system_s(found: Simulation) -> list[float]:
    """Seconds from the arrival to the end of each request."""
    return [one.end_s - one.due_s for one in found.report.records]


def theory_wait_s(utilisation: float, servers: int, *, is_random: bool) -> float:
    """Mean wait before service where services take 1 s in the mean.

    Source: Erlang's C formula (1917); for constant services of one server Pollaczek (1930).
    """
    if not is_random:
        assert servers == 1, "M/D/k has no closed form"
        return utilisation / (2 * (1 - utilisation))
    offered = servers * utilisation
    queued = offered**servers / math.factorial(servers) / (1 - utilisation)
    below = sum(offered**one / math.factorial(one) for one in range(servers))
    return queued / (below + queued) / (servers * (1 - utilisation))


def compare(
    name: str, count: int, utilisation: float, *, servers: int, is_random: bool, std: float
) -> dict[str, object]:
    """One long run: mean wait and mean time in the system, and the theory's."""
    mean_tokens = MEAN_PROMPT if servers == 1 else 100
    given = load(
        count, utilisation, servers=servers, mean_tokens=mean_tokens, seed=0, is_random=is_random
    )
    began = time.perf_counter()
    found = in_system_s(one_server(given) if servers == 1 else k_servers(given, servers))
    took_s = time.perf_counter() - began
    wait_s = fmean(found) - fmean(given.services_s)
    theory_s = theory_wait_s(utilisation, servers, is_random=is_random)
    return {
        "queue": name,
        "requests": count,
        "utilisation": utilisation,
        "wait_s": wait_s,
        "theory_wait_s": theory_s,
        "wait_error": wait_s / theory_s - 1,
        "in_system_s": fmean(found),
        "theory_in_system_s": theory_s + 1,
        "in_system_error": fmean(found) / (theory_s + 1) - 1,
        "in_system_std_over_seeds": std,
        "took_s": took_s,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the long cases, print a line each and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("bench/results/queueing.json"))
    args = parser.parse_args(arguments)
    rows = [
        compare("M/M/1", 400_000, 0.5, servers=1, is_random=True, std=0.0027),
        compare("M/D/1", 400_000, 0.5, servers=1, is_random=False, std=0.0019),
        compare("M/M/4", 60_000, 0.5, servers=4, is_random=True, std=0.0034),
    ]
    for row in rows:
        print(
            f"{row['queue']}: in the system {row['in_system_s']:.4f} s, theory "
            f"{row['theory_in_system_s']:.4f} s ({row['in_system_error']:+.2%}); "
            f"wait {row['wait_s']:.4f} s, theory {row['theory_wait_s']:.4f} s "
            f"({row['wait_error']:+.2%})"
        )
    args.output.write_text(json.dumps({"cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
