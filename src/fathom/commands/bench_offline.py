"""`fathom bench offline`: the engine in this process, without a server: throughput, or latency."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from fathom import log
from fathom.commands.bench_config import DatasetConfig, check_given
from fathom.commands.bench_facts import machine_facts
from fathom.commands.bench_load import make_requests
from fathom.commands.bench_tokens import LocalTokens
from fathom.commands.files import write_file
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.foreign import translate
from fathom.commands.foreign_flags import foreign_flags
from fathom.config import EngineConfig, check_setting, setting
from fathom.errors import ConfigError
from fathom.perf.datasets import RandomShape, random_requests
from fathom.perf.report import Statistics
from fathom.perf.workload import LoadRequest

if TYPE_CHECKING:
    from fathom.core.types import SamplingParams
    from fathom.engine.llm import LLM
    from fathom.engine.results import RequestOutput

_PERCENTS = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)
_THROUGHPUT_DOC = """\
Answers many requests at once and prints tokens a second.

  fathom bench offline --num-prompts 64 --input-len 128 --output-len 64"""
_LATENCY_DOC = """\
Answers one batch of random prompts again and again and prints how long it takes.

  fathom bench offline latency --batch-size 8 --input-len 32 --output-len 128"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """One batch. Answers go on to their full length."""

    batch_size: int = setting(8, "Prompts.", "--batch-size")
    input_len: int = setting(32, "Tokens of a prompt.", "--input-len", unit="tokens")
    output_len: int = setting(128, "Tokens of an answer.", "--output-len", unit="tokens")

    def __post_init__(self) -> None:
        for name in ("batch_size", "input_len", "output_len"):
            value = getattr(self, name)
            check_setting(LatencyConfig, name, value >= 1, value, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How often, and where the results go."""

    n: int = setting(1, "Answers to each prompt.", "--n")
    num_iters_warmup: int | None = setting(
        None,
        "Runs before that are not counted: 10 for latency, 1 for throughput.",
        "--num-iters-warmup",
    )
    num_iters: int | None = setting(
        None, "Runs that are: 30 for latency, 3 for throughput.", "--num-iters"
    )
    output_json: str | None = setting(None, "File for the results.", "--output-json")

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("num_iters_warmup", 0), ("num_iters", 1)):
            value = getattr(self, name)
            is_right = value is None or value >= least
            check_setting(RunConfig, name, is_right, value, f"{least} or more")


def main(arguments: list[str]) -> int:
    """`offline [throughput|latency]`: throughput where not said."""
    if arguments[:1] == ["latency"]:
        return latency(arguments[1:])
    return throughput(arguments[1:] if arguments[:1] == ["throughput"] else arguments)


def throughput(arguments: list[str]) -> int:
    """Tokens a second, all requests at once."""
    namespace = _parse(arguments, "throughput", _THROUGHPUT_DOC, DatasetConfig)
    check_given(getattr(namespace, "dataset_name", "random"), vars(namespace))
    asked, run = from_flags(DatasetConfig, namespace), from_flags(RunConfig, namespace)
    if asked.dataset_name in ("multi_turn", "timed_trace"):
        raise ConfigError(
            f"--dataset-name {asked.dataset_name}",
            wanted="requests that can run at once",
            fix="fathom bench serve",
        )
    with _engine(namespace) as llm:
        tokens = LocalTokens(llm.get_tokenizer())
        requests = make_requests(asked, tokens, namespace.seed, as_text=False)
        times_s, outputs = _repeat(llm, requests, run, num_iters_warmup=1, num_iters=3)
        told = _throughput(outputs, times_s) | _facts(llm)
    elapsed = told["elapsed_time"]
    spread = Statistics.of(times_s, (10.0, 90.0)).percentiles
    print(
        f"Throughput: {told['requests_per_second']:.2f} requests/s, "
        f"{told['tokens_per_second']:.2f} total tokens/s, "
        f"{told['output_tokens_per_second']:.2f} output tokens/s\n"
        f"Median of {len(times_s)} runs: {elapsed:.3f} s "
        f"(p10 {spread[0][1]:.3f}, p90 {spread[1][1]:.3f})\n"
        f"Total num prompt tokens:  {told['total_prompt_tokens']}\n"
        f"Total num output tokens:  {told['total_output_tokens']}"
    )
    _save(told, run.output_json)
    return 0


def latency(arguments: list[str]) -> int:
    """Seconds of one batch."""
    namespace = _parse(arguments, "latency", _LATENCY_DOC, LatencyConfig)
    asked, run = from_flags(LatencyConfig, namespace), from_flags(RunConfig, namespace)
    with _engine(namespace) as llm:
        shape = RandomShape(input_len=asked.input_len, output_len=asked.output_len)
        vocabulary = LocalTokens(llm.get_tokenizer()).vocabulary()
        rng = Random(f"{namespace.seed} prompts")
        requests = random_requests(asked.batch_size, shape, vocabulary, rng)
        times_s, _ = _repeat(llm, requests, run, num_iters_warmup=10, num_iters=30)
        told = _latency(times_s) | {"batch_size": asked.batch_size, "input_len": asked.input_len}
        told |= {"output_len": asked.output_len, "n": run.n} | _facts(llm)
    print(f"Avg latency: {told['avg_latency']} seconds")
    print(f"Std latency: {told['std_latency']} seconds")
    for percent, value in told["percentiles"].items():
        print(f"{percent}% percentile latency: {value} seconds")
    tokens = asked.batch_size * asked.output_len * run.n
    print(f"Median output throughput: {tokens / told['percentiles']['50']:.2f} tokens/s")
    _save(told, run.output_json)
    return 0


def _parse(arguments: list[str], name: str, doc: str, load: type[Any]) -> Namespace:
    """What was asked; foreign flags of the benchmark and of the engine are told on stderr."""
    foreign = foreign_flags("bench_offline")
    own, notes = translate(arguments, foreign)
    known = {one for entry in foreign for one in entry.names}
    engine_foreign = [entry for entry in foreign_flags("serve") if not known & set(entry.names)]
    taken = {flag for config in (load, RunConfig) for one in fields(config)
             for flag in one.metadata["flags"]}  # fmt: skip
    engine_foreign = [entry for entry in engine_foreign if not taken & set(entry.names)]
    own, more = translate(own, engine_foreign)
    for note in (*notes, *more):
        print(f"note: {note}", file=sys.stderr)
    parser = FlagParser(f"bench {name}", doc)
    parser.know((*known, *(one for entry in engine_foreign for one in entry.names)))
    add_flags(parser, load, "load")
    add_flags(parser, RunConfig, "runs")
    add_flags(parser, EngineConfig, "engine", skip=("seed",))
    parser.add_argument("--seed", type=int, default=0, help="of prompts and answers. Default: 0.")
    return parser.parse(own)


def _engine(namespace: Namespace) -> LLM:
    from fathom.engine.llm import LLM

    log.configure("warning")
    # A prefix cache would answer a repeated batch from what it keeps, as vLLM has it too.
    if not hasattr(namespace, "enable_prefix_caching"):
        namespace.enable_prefix_caching = False
    config = from_flags(EngineConfig, namespace)
    settings = {one.name: getattr(config, one.name) for one in fields(config)}
    return LLM(**settings)


def _repeat(
    llm: LLM,
    requests: Sequence[LoadRequest],
    run: RunConfig,
    *,
    num_iters_warmup: int,
    num_iters: int,
    now_s: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[RequestOutput]]:
    """Seconds that each counted run of the same requests took, and the last one's outputs."""
    warmups = num_iters_warmup if run.num_iters_warmup is None else run.num_iters_warmup
    counted = num_iters if run.num_iters is None else run.num_iters
    prompts = [one.prompt if isinstance(one.prompt, str) else list(one.prompt) for one in requests]
    params = [_sampling(one.output_len, run.n) for one in requests]
    times_s: list[float] = []
    outputs: list[RequestOutput] = []
    for number in range(warmups + counted):
        began_s = now_s()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        took_s = now_s() - began_s
        if number >= warmups:
            times_s.append(took_s)
    return times_s, outputs


def _sampling(output_len: int, n: int) -> SamplingParams:
    from fathom.core.types import SamplingParams

    return SamplingParams(n=n, temperature=1.0, top_p=1.0, ignore_eos=True, max_tokens=output_len)


def _throughput(outputs: Sequence[RequestOutput], times_s: list[float]) -> dict[str, Any]:
    """vLLM's fields for the median run, and the samples."""
    median_s = Statistics.of(times_s, ()).median
    num_prompt = sum(len(one.prompt_token_ids) for one in outputs)
    num_output = sum(len(choice.token_ids) for one in outputs for choice in one.outputs)
    return {
        "elapsed_time": median_s,
        "num_requests": len(outputs),
        "total_num_tokens": num_prompt + num_output,
        "requests_per_second": len(outputs) / median_s,
        "tokens_per_second": (num_prompt + num_output) / median_s,
        "output_tokens_per_second": num_output / median_s,
        "total_prompt_tokens": num_prompt,
        "total_output_tokens": num_output,
        "elapsed_times": times_s,
    }


def _latency(times_s: list[float]) -> dict[str, Any]:
    """vLLM's fields."""
    one = Statistics.of(times_s, _PERCENTS)
    return {
        "avg_latency": one.mean,
        "std_latency": one.std,
        "latencies": times_s,
        "percentiles": {f"{percent:g}": value for percent, value in one.percentiles},
    }


def _facts(llm: LLM) -> dict[str, Any]:
    plan = llm.plan
    return {
        "model": plan.model_path,
        "device": plan.device,
        "dtype": plan.compute_dtype.name,
        "quantization": plan.quantization,
        "ops_backend": plan.ops_backend,
        "tensor_parallel_size": plan.layout.tp,
        "threads": plan.threads,
        "enable_prefix_caching": plan.prefix_cache,
        "machine": machine_facts(),
    }


def _save(told: dict[str, Any], path: str | None) -> None:
    if path is None:
        return
    raw = msgspec.json.format(msgspec.json.encode(told), indent=1)
    write_file("--output-json", path, (raw, b"\n"))
    print(f"written: {path}")
