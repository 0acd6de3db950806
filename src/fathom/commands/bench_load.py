"""From the settings of a load to the workload: reads the file of a dataset, draws by the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec

from fathom.commands.bench_config import FROM_A_FILE, DatasetConfig
from fathom.commands.bench_tokens import Tokens
from fathom.commands.bench_traffic import TrafficConfig
from fathom.commands.files import read_text
from fathom.errors import ConfigError
from fathom.perf import datasets
from fathom.perf.datasets import PrefixShape, RandomShape, TurnShape
from fathom.perf.trace import TraceShape, trace_requests
from fathom.perf.workload import (
    LoadRequest,
    RampUp,
    Workload,
    arrive,
    burst_arrivals,
    gamma_arrivals,
    ramp_arrivals,
    take_turns,
)


def make_requests(
    asked: DatasetConfig, tokens: Tokens, seed: int, *, as_text: bool
) -> list[LoadRequest]:
    """`num_prompts` requests, or fewer where a file has no more. Raises: ConfigError."""
    count, rng = asked.num_prompts, Random(f"{seed} prompts")
    if asked.dataset_name in FROM_A_FILE:
        made = _from_file(asked, tokens, count, seed, as_text=as_text)
        if asked.dataset_name == "timed_trace":
            return made[:count]
        return datasets.pick(made, count, rng, shuffle=asked.shuffle, oversample=asked.oversample)
    vocabulary = tokens.vocabulary()
    if asked.dataset_name == "random":
        shape = RandomShape(
            input_len=_first(asked.input_len, asked.random_input_len),
            output_len=_first(asked.output_len, asked.random_output_len),
            range_ratio=asked.random_range_ratio,
            prefix_len=asked.random_prefix_len,
        )
        return datasets.random_requests(count, shape, vocabulary, rng, as_text=as_text)
    if asked.dataset_name == "prefix_repetition":
        prefixes = PrefixShape(
            prefix_len=asked.prefix_repetition_prefix_len,
            suffix_len=_first(asked.input_len, asked.prefix_repetition_suffix_len),
            num_prefixes=asked.prefix_repetition_num_prefixes,
            output_len=_first(asked.output_len, asked.prefix_repetition_output_len),
        )
        return datasets.prefix_requests(count, prefixes, vocabulary, rng, as_text=as_text)
    turns = TurnShape(
        num_turns=asked.multi_turn_num_turns,
        input_len=_first(asked.input_len, asked.multi_turn_input_len),
        output_len=_first(asked.output_len, asked.multi_turn_output_len),
        think_s=asked.multi_turn_think_time,
    )
    return datasets.turn_requests(count, turns, vocabulary, rng, as_text=as_text)


def warmup_requests(
    requests: Sequence[LoadRequest], count: int, tokens: Tokens, seed: int, *, as_text: bool
) -> list[LoadRequest]:
    """Requests of the same lengths as the first `count`, of other tokens: a prefix cache must not
    know the measured ones beforehand."""
    if not count:
        return []
    vocabulary, rng = tokens.vocabulary(), Random(f"{seed} warm-up")
    made = []
    for index in range(count):
        like = requests[index % len(requests)]
        places = vocabulary.draw(rng, max(1, like.prompt_len))
        made.append(datasets.request(vocabulary, places, like.output_len, as_text=as_text))
    return made


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _from_file(
    asked: DatasetConfig, tokens: Tokens, count: int, seed: int, *, as_text: bool
) -> list[LoadRequest]:
    assert asked.dataset_path is not None
    path = Path(asked.dataset_path)
    text = read_text("--dataset-path", path)
    name, answer_len = asked.dataset_name, asked.output_len
    if name == "sharegpt":
        rows = _array(text, path)
        if asked.shuffle:  # before the lengths are counted, which costs
            Random(f"{seed} file").shuffle(rows)
        answer_len = asked.sharegpt_output_len if answer_len is None else answer_len
        return datasets.sharegpt_requests(rows, tokens.count, limit=count, output_len=answer_len)
    if name == "custom":
        answer_len = asked.custom_output_len if answer_len is None else answer_len
        return datasets.custom_requests(_lines(text, path), tokens.count, output_len=answer_len)
    vocabulary = tokens.vocabulary()
    if name == "burstgpt":
        rng = Random(f"{seed} lengths")
        lines = text.splitlines()
        made = datasets.burstgpt_requests(lines, vocabulary, rng, as_text=as_text)
    else:
        shape = TraceShape(asked.timed_trace_sec_multiplier, asked.timed_trace_chunk_hash_size)
        made = trace_requests(
            text, shape, vocabulary, seed, name=f"--dataset-path {path}", as_text=as_text
        )
    return made if answer_len is None else [replace(one, output_len=answer_len) for one in made]


def _array(text: str, path: Path) -> list[dict[str, Any]]:
    with _reading(path):
        return msgspec.json.decode(text, type=list[dict[str, Any]])


def _lines(text: str, path: Path) -> list[dict[str, Any]]:
    with _reading(path):
        lines = (line for line in text.splitlines() if line.strip())
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--dataset-path {path}", found=str(error), wanted="JSON") from error


def make_workload(
    requests: Sequence[LoadRequest], traffic: TrafficConfig, seed: int, *, is_timed: bool
) -> Workload:
    """The requests with their arrivals. Raises: ConfigError."""
    if is_timed and traffic.self_timed:
        if not math.isinf(traffic.request_rate) or traffic.ramp_up_strategy is not None:
            raise ConfigError(
                "--request-rate and the trace's own times exclude each other", fix="--no-self-timed"
            )
        first_s = min((one.at_s for one in requests), default=0.0)
        arrived = arrive(requests, [one.at_s - first_s for one in requests])
    elif traffic.think_time and traffic.max_concurrency is not None:
        arrived = take_turns(requests, traffic.max_concurrency, traffic.think_time)
    else:
        count = sum(one.after is None for one in requests)
        arrived = arrive(requests, _times(count, traffic, Random(f"{seed} arrivals")))
    return Workload(requests=arrived, max_concurrency=traffic.max_concurrency)


def _times(count: int, traffic: TrafficConfig, rng: Random) -> list[float]:
    start, end = traffic.ramp_up_start_rps, traffic.ramp_up_end_rps
    if traffic.ramp_up_strategy is not None and start is not None and end is not None:
        strategy = cast(RampUp, traffic.ramp_up_strategy)
        return ramp_arrivals(count, start, end, rng, strategy=strategy)
    if traffic.burst_size > 1:
        return burst_arrivals(count, traffic.request_rate, rng, burst_size=traffic.burst_size)
    return gamma_arrivals(count, traffic.request_rate, rng, burstiness=traffic.burstiness)
