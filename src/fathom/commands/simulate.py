"""`fathom simulate`: what a deployment would do under a load, without its GPUs."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import msgspec

from fathom.commands.bench_config import DatasetConfig, check_given
from fathom.commands.bench_drafts import draft_results
from fathom.commands.bench_load import make_requests, make_workload
from fathom.commands.bench_save import wanted_of
from fathom.commands.bench_target import ResultConfig
from fathom.commands.bench_traffic import TrafficConfig
from fathom.commands.files import check_writable, write_file
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.simulate_target import ENGINE_FIELDS, HardwareConfig, Target, target_of
from fathom.config import EngineConfig
from fathom.errors import ConfigError
from fathom.perf.chrome_trace import chrome_trace
from fathom.perf.result import Wanted, table
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Simulation
from fathom.perf.simulation_page import page
from fathom.perf.simulation_result import told
from fathom.perf.virtual import VirtualVocabulary
from fathom.perf.workload import Workload

_DOC = """\
Runs the scheduler, prefix cache and page pool under a load in virtual time: no GPU, no weights.
The times of steps come from the cost model; the flags of the load are those of 'bench serve'.
All GPUs are used: --tensor-parallel-size, where not given, is their number over -dp times -pp.

  fathom simulate R1 --gpu 8xH20-141 --request-rate 2 --input-len 2000 --output-len 500
  fathom simulate V3 --gpu 16xH100-80 -dp 16 --dataset-name timed_trace --dataset-path FILE"""
EXIT_SOME_FAILED = 1
_TEXTS = ("sharegpt", "custom")
_RESULTS = ("percentile_metrics", "metric_percentiles", "goodput")
_OF_A_SERVER = ("num_warmups", "ready_check_timeout_sec", "request_timeout")


class VirtualTokens:
    """Tokens that nobody reads."""

    def count(self, text: str) -> int:
        """Raises: ConfigError, because to count a text's tokens takes a tokenizer."""
        raise ConfigError("--dataset-name", found="texts", wanted="lengths in tokens")

    def vocabulary(self) -> VirtualVocabulary:
        """Runs of virtual tokens."""
        return VirtualVocabulary()


def parse(arguments: list[str]) -> Namespace:
    """The flags. Raises: ConfigError."""
    parser = FlagParser("simulate", _DOC)
    parser.add_argument("model", help="a known model's name, or a directory with its config.json")
    add_flags(parser, HardwareConfig, "machines")
    add_flags(parser, EngineConfig, "engine", skip=_others(EngineConfig, ENGINE_FIELDS))
    add_flags(parser, DatasetConfig, "dataset")
    add_flags(parser, TrafficConfig, "traffic", skip=_OF_A_SERVER)
    add_flags(parser, ResultConfig, "results", skip=_others(ResultConfig, _RESULTS))
    parser.add_argument("--json", action="store_true", help="print the results as JSON.")
    parser.add_argument("--trace", metavar="FILE", help="write steps and requests for Perfetto.")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots.")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and arrivals. Default: 0.")
    return parser.parse(arguments)


def _others(config: type[Any], wanted: Iterable[str]) -> tuple[str, ...]:
    kept = set(wanted)
    return tuple(one.name for one in fields(config) if one.name not in kept)


def main(arguments: list[str]) -> int:
    """Simulate and print; 0 where every request was answered."""
    given = parse(arguments)
    for flag, path in (("--trace", given.trace), ("--html", given.html)):
        if path is not None:
            check_writable(flag, path)
    wanted = wanted_of(from_flags(ResultConfig, given))
    target = target_of(
        given.model,
        from_flags(HardwareConfig, given),
        from_flags(EngineConfig, given, model=None),
        tp=getattr(given, "tensor_parallel_size", None),
    )
    workload = load_of(given)
    found = simulate(workload, target.deployment, target.cost)
    drafts = {
        "num_drafts": sum(one.draft_rounds for one in found.stats),
        "num_draft_tokens": sum(one.draft_tokens for one in found.stats),
        "num_accepted_tokens": sum(one.accepted_tokens for one in found.stats),
    }
    numbers = (
        told(found, wanted)
        | draft_results({}, drafts)
        | {
            "about": dict(target.about),
            "seed": given.seed,
            "workload_sha256": workload.digest(),
        }
    )
    if given.json:
        print(msgspec.json.format(msgspec.json.encode(numbers), indent=1).decode())
    else:
        for name, value in target.about:
            print(f"{name + ':':<12}{value}")
        print(table(numbers, wanted, "Simulated Serving Result"))
    _write(given, found, numbers, wanted, target)
    if found.report.is_closed:
        note = "a closed loop asks a slow server less: for latencies give --request-rate"
        print(f"note: {note}", file=sys.stderr)
    return EXIT_SOME_FAILED if numbers["failed"] else 0


def load_of(given: Namespace) -> Workload:
    """The load that the flags ask for. Raises: ConfigError."""
    check_given(getattr(given, "dataset_name", "random"), vars(given))
    asked, traffic = from_flags(DatasetConfig, given), from_flags(TrafficConfig, given)
    name = asked.dataset_name
    if name in _TEXTS:
        raise ConfigError(
            f"--dataset-name {name}",
            found="texts, whose tokens only a tokenizer can count",
            wanted="random, prefix_repetition, multi_turn, burstgpt or timed_trace",
        )
    requests = make_requests(asked, VirtualTokens(), given.seed, as_text=False)
    return make_workload(requests, traffic, given.seed, is_timed=name == "timed_trace")


def _write(
    given: Namespace, found: Simulation, numbers: dict[str, Any], wanted: Wanted, target: Target
) -> None:
    """The files that were asked for. Raises: ConfigError where one cannot be written."""
    if given.trace is not None:
        write_file("--trace", given.trace, chrome_trace(found))
    if given.html is not None:
        write_file("--html", given.html, (page(found, numbers, wanted, target.about).encode(),))
    for path in filter(None, (given.trace, given.html)):
        print(f"written: {path}", file=sys.stderr)
