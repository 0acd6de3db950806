"""How many requests the simulator gets through in a minute, on one core.

    python bench/simulate.py [--requests N] [--output FILE]

Cases: short chats, short requests that share prefixes, conversations, long prompts, and DP
attention on the real cost model of DeepSeek-R1 on GPUs. The goal is 100,000 requests a minute for
short ones. Making the requests counts too. Each case runs in turn, `--repeats` times. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from fathom.commands.bench_facts import machine_facts
from fathom.commands.simulate_target import HardwareConfig, target_of
from fathom.config import EngineConfig
from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.perf import datasets
from fathom.perf.datasets import PrefixShape, RandomShape, TurnShape
from fathom.perf.plan_shape import LinearTime
from fathom.perf.shape import StepTime
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment
from fathom.perf.virtual import VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload, arrive, gamma_arrivals

Make = Callable[[int, Random], list[LoadRequest]]


def random(input_len: int, output_len: int) -> Make:
    """Requests of random tokens, lengths within a half of these."""
    shape = RandomShape(input_len=input_len, output_len=output_len, range_ratio=0.5)
    return lambda count, rng: datasets.random_requests(count, shape, VirtualVocabulary(), rng)


def shared(prefix_len: int, suffix_len: int, output_len: int) -> Make:
    """Requests that share 50 prefixes."""
    shape = PrefixShape(
        prefix_len=prefix_len, suffix_len=suffix_len, num_prefixes=50, output_len=output_len
    )
    return lambda count, rng: datasets.prefix_requests(count, shape, VirtualVocabulary(), rng)


def turns(input_len: int, output_len: int) -> Make:
    """Conversations of four turns."""
    shape = TurnShape(input_len=input_len, output_len=output_len)
    return lambda count, rng: datasets.turn_requests(count, shape, VirtualVocabulary(), rng)


def linear() -> tuple[Deployment, StepTime]:
    """One group, 256 sequences, 1.3 million tokens of KV; the simplest cost."""
    deployment = Deployment(
        capacity=Capacity(20_000, 64, 8192, 256, 2),
        scheduler=SchedulerConfig(max_model_len=16_384, max_queued=10**9),
    )
    return deployment, LinearTime()


def planned() -> tuple[Deployment, StepTime]:
    """DeepSeek-R1 on 8 H200 with DP attention, as `fathom simulate` has it."""
    hardware = HardwareConfig(gpu="8xH200", data_parallel_size=8)
    target = target_of("R1", hardware, EngineConfig(max_num_queued_reqs=10**9), tp=None)
    return target.deployment, target.cost


CASES: dict[str, tuple[Make, float, Callable[[], tuple[Deployment, StepTime]]]] = {
    "short chats: 64 in, 16 out": (random(64, 16), 300.0, linear),
    "shared prefixes: 512 + 64 in, 16 out": (shared(512, 64, 16), 300.0, linear),
    "conversations: 4 turns of 64 in, 32 out": (turns(64, 32), 40.0, linear),
    "long prompts: 8,000 in, 100 out": (random(8000, 100), 2.0, linear),
    "R1 on 8xH200, DP attention: 512 in, 64 out": (random(512, 64), 40.0, planned),
}


def measure(name: str, count: int) -> float:
    """Seconds of one case: to make the load and to simulate it."""
    make, rate, deployed = CASES[name]
    deployment, cost = deployed()
    began = time.perf_counter()
    requests = make(count, Random("requests"))
    openers = sum(one.after is None for one in requests)
    times = gamma_arrivals(openers, rate, Random("arrivals"))
    found = simulate(Workload(requests=arrive(requests, times)), deployment, cost)
    took_s = time.perf_counter() - began
    assert len(found.report.complete) == count, found.report.errors()
    return took_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, print a line each and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20_000, help="of short cases")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench/results/simulate.json"))
    args = parser.parse_args(arguments)
    counts = {name: args.requests if "short" in name or "shared" in name else args.requests // 10
              for name in CASES}  # fmt: skip
    took_s: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.repeats):
        for name in CASES:
            took_s[name].append(measure(name, counts[name]))
    rows = {}
    for name, samples in took_s.items():
        per_minute = [60 * counts[name] / seconds for seconds in samples]
        rows[name] = {
            "requests": counts[name],
            "median_requests_per_minute": statistics.median(per_minute),
            "seconds": samples,
        }
        print(f"{name}: {statistics.median(per_minute):,.0f} requests a minute")
    report = {"machine": machine_facts(), "cases": rows}
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
