"""The same requests through the real engine and through the simulator, after calibration.

    python bench/replay.py [--model DIRECTORY] [--requests N] [--output FILE]

The engine's core and executor run in this process on the embedded model (or on --model): first a
load to calibrate on, from whose steps the time of a step is fitted, then another one, of other
requests, that is compared. Requests come by a Poisson process and share prefixes; all answers have
their full length. Each side's TTFT, TPOT and end-to-end times are kept, and how far the simulator's
means and 99th percentiles are from the engine's. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from fathom.commands.bench_facts import machine_facts
from fathom.config import EngineConfig
from fathom.core.executor import Executor, Handle
from fathom.core.loop import EngineCore
from fathom.core.types import Request, SamplingParams, StepPlan, StepResult
from fathom.engine.loading import scheduler_config
from fathom.engine.text_side import model_directory
from fathom.ops.comm import SingleRank
from fathom.perf import datasets
from fathom.perf.plan_shape import plan_shape
from fathom.perf.report import Report, RequestRecord, Statistics
from fathom.perf.resolve import resolve
from fathom.perf.shape import StepShape
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment
from fathom.perf.virtual import Runs, VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload, arrive, gamma_arrivals
from fathom.runtime.build import build_worker, capacity_of, local_executor, start_threads
from fathom.runtime.device import probe
from fathom.runtime.worker import Worker
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.weights.open import open_checkpoint

import torch  # isort: skip  # after fathom's checks of what is installed

METRICS = ("ttft", "tpot", "e2el")
_PERCENT = 99.0


@dataclass(slots=True)
class Steps:
    """What was measured of each step."""

    shapes: list[StepShape] = field(default_factory=list)
    begin_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    submitted_s: list[float] = field(default_factory=list)
    woken_s: list[float] = field(default_factory=list)


class TimedWorker:
    """A worker that says when its steps began and ended."""

    def __init__(self, worker: Worker, steps: Steps) -> None:
        self._worker, self._steps = worker, steps

    def prepare(self, plan: StepPlan) -> Callable[[], StepResult]:
        """What runs a step."""
        run = self._worker.prepare(plan)

        def timed() -> StepResult:
            began = time.perf_counter()
            result = run()
            self._steps.begin_s.append(began)
            self._steps.end_s.append(time.perf_counter())
            return result

        return timed


class TimedHandle:
    """A step whose `wait` says when it returned."""

    def __init__(self, handle: Handle, steps: Steps) -> None:
        self._handle, self._steps = handle, steps

    def wait(self, timeout_s: float) -> StepResult:
        """The step's result."""
        result = self._handle.wait(timeout_s)
        self._steps.woken_s.append(time.perf_counter())
        return result

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._handle.done()


class TimedExecutor:
    """An executor that notes what was submitted, and when."""

    def __init__(self, executor: Executor, steps: Steps) -> None:
        self._executor, self.steps = executor, steps
        self.capacity = executor.capacity

    def submit(self, plan: StepPlan) -> TimedHandle:
        """Start a step."""
        handle = self._executor.submit(plan)
        self.steps.submitted_s.append(time.perf_counter())
        self.steps.shapes.append(plan_shape(plan))
        return TimedHandle(handle, self.steps)

    def close(self) -> None:
        """End the executor."""
        self._executor.close()


@dataclass(frozen=True, slots=True)
class FittedTime:
    """Seconds of a step as a sum of its counts, fitted to measured steps. Steps of few sequences
    that only decode have a median of their own each, which kernels for small batches need."""

    device: tuple[float, ...]
    host: tuple[float, float]
    small: dict[int, tuple[float, float]]

    def device_s(self, shape: StepShape) -> float:
        """Seconds of the device."""
        if shape.decode_sequences == shape.num_sequences and shape.num_sequences in self.small:
            base_s, kv_s = self.small[shape.num_sequences]
            return base_s + kv_s * shape.kv_tokens
        return float(np.dot(self.device, features(shape)))

    def host_s(self, shape: StepShape) -> float:
        """Seconds of the host."""
        return self.host[0] + self.host[1] * shape.num_sequences


def features(shape: StepShape) -> tuple[float, ...]:
    """What a step's time is a sum of."""
    is_prefill = float(shape.prefill_tokens > 0)
    decode_kv = shape.kv_tokens - shape.prefill_kv_tokens
    return (
        1.0, is_prefill, shape.num_sequences, shape.num_tokens, decode_kv, shape.prefill_pairs,
    )  # fmt: skip


def fit(steps: Steps) -> FittedTime:
    """The time of steps. The host's is that from the end of a wait to the end of a submission."""
    took = np.array(device_times_s(steps))
    rows = np.array([features(shape) for shape in steps.shapes])
    device = least_squares(rows, took)
    small = {}
    by_count: dict[int, list[int]] = {}
    for index, shape in enumerate(steps.shapes):
        if shape.decode_sequences == shape.num_sequences:
            by_count.setdefault(shape.num_sequences, []).append(index)
    for count, places in by_count.items():
        if len(places) >= 20:
            kv_s = device[4]
            bases = [took[place] - kv_s * steps.shapes[place].kv_tokens for place in places]
            small[count] = (float(np.mean(bases)), float(kv_s))
    hosts = host_times_s(steps)
    rows = np.array([(1.0, shape.num_sequences) for shape, _ in hosts])
    host = least_squares(rows, np.array([seconds for _, seconds in hosts]))
    return FittedTime(tuple(map(float, device)), (float(host[0]), float(host[1])), small)


def device_times_s(steps: Steps) -> list[float]:
    """From where a step could have begun (the end of the one before it, or its submission) to its
    end: handing it over is the device's time."""
    times, before_s = [], 0.0
    for submitted_s, end_s in zip(steps.submitted_s, steps.end_s, strict=True):
        times.append(end_s - max(submitted_s, before_s))
        before_s = end_s
    return times


def host_times_s(steps: Steps) -> list[tuple[StepShape, float]]:
    """For steps that were submitted at once after the end of a wait."""
    found = []
    woken = sorted(steps.woken_s)
    place = 0
    for shape, submitted_s in zip(steps.shapes, steps.submitted_s, strict=True):
        while place < len(woken) and woken[place] <= submitted_s:
            place += 1
        if place and submitted_s - woken[place - 1] < 0.02:
            found.append((shape, submitted_s - woken[place - 1]))
    return found


def least_squares(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of 0 or more, by leaving out what would be negative."""
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept], values, rcond=None)[0]
        if (found >= 0).all() or len(kept) == 1:
            result = np.zeros(rows.shape[1])
            result[kept] = np.maximum(found, 0.0)
            return result
        kept.pop(int(np.argmin(found)))


def make_load(count: int, rate: float, seed: int, lens: tuple[int, int]) -> Workload:
    """Half of the requests random, half with one of 8 prefixes; Poisson arrivals."""
    rng, words = Random(f"{seed} prompts"), VirtualVocabulary()
    asked, answered = lens
    shape = datasets.RandomShape(input_len=asked, output_len=answered, range_ratio=0.8)
    prefixes = datasets.PrefixShape(
        prefix_len=asked, suffix_len=max(1, asked // 2), num_prefixes=8, output_len=answered
    )
    made = datasets.random_requests(count - count // 2, shape, words, rng)
    made += datasets.prefix_requests(count // 2, prefixes, words, rng)
    rng.shuffle(made)
    times = gamma_arrivals(count, rate, Random(f"{seed} arrivals"))
    return Workload(requests=arrive(made, times))


def real_ids(prompt: Runs, vocab_size: int) -> tuple[int, ...]:
    """Tokens that stand for runs: equal runs are equal tokens."""
    ids: list[int] = []
    for run_id, count in prompt.pairs:
        ids += Random(run_id).choices(range(10, vocab_size), k=count)
    return tuple(ids)


def replay(core: EngineCore, load: Workload, vocab_size: int, name: str) -> Report:
    """Put a load on the engine as its own loop would: requests are added between steps."""
    requests = [_request(f"{name}-{i}", one, vocab_size) for i, one in enumerate(load.requests)]
    times_s: dict[str, list[float]] = {one.id: [] for one in requests}
    began_s, place, clock = time.perf_counter(), 0, time.perf_counter
    while place < len(requests) or core.has_work:
        now_s = clock() - began_s
        while place < len(requests) and load.requests[place].at_s <= now_s:
            arrived_s = load.requests[place].at_s + began_s
            core.add(replace(requests[place], arrival_s=arrived_s), clock())
            place += 1
        if not core.has_work:
            time.sleep(max(0.0, load.requests[place].at_s - now_s))
            continue
        for event in core.step(clock()):
            times_s[event.id].append(clock() - began_s)
    if core.error:
        raise SystemExit(core.error)
    print(f"{name}: {len(requests)} requests in {clock() - began_s:.1f} s", file=sys.stderr)
    records = tuple(
        RequestRecord(
            index=index,
            due_s=one.at_s,
            sent_s=one.at_s,
            end_s=times_s[request.id][-1],
            times_s=tuple(times_s[request.id]),
            prompt_tokens=one.prompt_len,
            output_tokens=len(times_s[request.id]),
        )
        for index, (one, request) in enumerate(zip(load.requests, requests, strict=True))
    )
    return Report(records=records, duration_s=max(one.end_s for one in records))


def _request(id: str, one: LoadRequest, vocab_size: int) -> Request:
    assert isinstance(one.prompt, Runs)
    sampling = SamplingParams(max_tokens=one.output_len, ignore_eos=True)
    return Request(id=id, prompt_ids=real_ids(one.prompt, vocab_size), sampling=sampling, seed=1)


def compare(real: Report, simulated: Report) -> dict[str, Any]:
    """Means and 99th percentiles of both sides, and the simulator's error."""
    told: dict[str, Any] = {}
    for metric in METRICS:
        sides = [Statistics.of(one.samples_s(metric), (_PERCENT,)) for one in (real, simulated)]
        means, tails = ([get(one) for one in sides] for get in (_mean, _tail))
        told[metric] = {
            "engine_mean_s": means[0],
            "simulator_mean_s": means[1],
            "mean_error": means[1] / means[0] - 1,
            "engine_p99_s": tails[0],
            "simulator_p99_s": tails[1],
            "p99_error": tails[1] / tails[0] - 1,
        }
    return told


def _mean(one: Statistics) -> float:
    return one.mean


def _tail(one: Statistics) -> float:
    return one.percentiles[0][1]


def build(config: EngineConfig, steps: Steps) -> tuple[DeploymentPlan, TimedExecutor]:
    """The plan and its executor, which notes its steps."""
    directory = model_directory(config)
    spec = open_checkpoint(directory).spec
    plan = resolve(config, spec, probe(config.device), str(directory))
    start_threads(plan, plan.threads)
    worker = build_worker(plan, Shard(), SingleRank(), torch.device(plan.device))
    timed: Any = TimedWorker(worker, steps)
    return plan, TimedExecutor(local_executor(plan, timed), steps)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One model: calibrate, replay, simulate, compare."""
    config = EngineConfig(
        model=args.model, max_num_seqs=args.sequences, quantization=args.quantization
    )
    steps = Steps()
    plan, executor = build(config, steps)
    lens, vocab = (args.input_len, args.output_len), plan.model.vocab_size
    core = EngineCore(executor, scheduler_config(plan))
    warm = make_load(8, args.rate, 1, lens)
    replay(core, warm, vocab, "warm")
    rate = args.rate
    for column in (steps.shapes, steps.begin_s, steps.end_s, steps.submitted_s, steps.woken_s):
        column.clear()
    # Slower and faster than the load that counts, so that its steps lie between those measured.
    for index, factor in enumerate((0.7, 1.3)):
        calibrating = make_load(args.calibrate, rate * factor, 2 + index, lens)
        replay(core, calibrating, vocab, f"calibrate-{index}")
    cost = fit(steps)
    measured = len(steps.shapes)
    load = make_load(args.requests, rate, 7, lens)
    # The cache holds pages of other prompts, none of which is found again.
    real = replay(core, load, vocab, "replay")
    executor.close()
    deployment = Deployment(capacity=capacity_of(plan), scheduler=scheduler_config(plan))
    simulated = simulate(load, deployment, cost)
    took = device_times_s(steps)[measured:]
    predicted = [cost.device_s(shape) for shape in steps.shapes[measured:]]
    return {
        "model": "embedded" if args.model is None else Path(args.model).name,
        "backend": plan.ops_backend,
        "settings": {
            "quantization": args.quantization, "requests": args.requests, "rate_per_s": rate,
            "input_len": lens[0], "output_len": lens[1],
            "max_sequences": plan.max_sequences, "threads": plan.threads,
        },
        "cost": {
            "device": cost.device, "host": cost.host,
            "small": {str(count): pair for count, pair in sorted(cost.small.items())},
        },
        "steps": {
            "engine": len(took), "simulator": len(simulated.timeline),
            "engine_busy_s": sum(took), "predicted_busy_s": sum(predicted),
        },
        "compared": compare(real, simulated.report),
        "samples_s": {
            side: {metric: [round(one, 6) for one in report.samples_s(metric)]
                   for metric in METRICS}
            for side, report in (("engine", real), ("simulator", simulated.report))
        },
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay, print the comparison and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="directory of a checkpoint; the embedded one if not given")
    parser.add_argument("--quantization")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--calibrate", type=int, default=150, help="requests of each of two loads")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--input-len", type=int, default=100)
    parser.add_argument("--output-len", type=int, default=24)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("bench/results/replay.json"))
    args = parser.parse_args(arguments)
    found = run(args)
    print(f"{found['model']}: {found['steps']}")
    for metric, one in found["compared"].items():
        print(
            f"{metric}: mean {1000 * one['engine_mean_s']:.2f} ms, simulated "
            f"{1000 * one['simulator_mean_s']:.2f} ({one['mean_error']:+.1%}); P99 "
            f"{1000 * one['engine_p99_s']:.2f} ms, simulated "
            f"{1000 * one['simulator_p99_s']:.2f} ({one['p99_error']:+.1%})"
        )
    held = msgspec.json.decode(args.output.read_bytes()) if args.output.exists() else {}
    held[found["model"]] = {"machine": machine_facts(), **found}
    args.output.write_bytes(msgspec.json.format(msgspec.json.encode(held), indent=0) + b"\n")


if __name__ == "__main__":
    main()
