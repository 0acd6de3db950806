"""`fathom bench serve`: puts a load on a server and prints what came of it."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from typing import Any

import uvloop

from fathom.commands.bench_ask import asking_of, client_headers, dialect_of, origin_of
from fathom.commands.bench_config import DatasetConfig, check_given
from fathom.commands.bench_drafts import draft_counters, draft_results
from fathom.commands.bench_facts import machine_facts
from fathom.commands.bench_load import make_requests, make_workload, warmup_requests
from fathom.commands.bench_ready import served_name, until_it_answers
from fathom.commands.bench_save import save, wanted_of
from fathom.commands.bench_target import ResultConfig, SamplingConfig, TargetConfig
from fathom.commands.bench_tokens import Tokens, tokens_of
from fathom.commands.bench_traffic import TrafficConfig
from fathom.commands.client import Client
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.foreign import translate
from fathom.commands.foreign_flags import foreign_flags
from fathom.config import environment_api_key
from fathom.engine.progress import ProgressBar
from fathom.errors import UnavailableError
from fathom.perf.client_load import ClientLoad, ClientLoadMeter
from fathom.perf.drive import WallClock, drive
from fathom.perf.http_stream import HttpClient
from fathom.perf.openai_stream import OpenAISender
from fathom.perf.report import Report, RequestRecord
from fathom.perf.result import detailed, result, table
from fathom.perf.workload import Workload

_DOC = """\
Puts a load on a server that speaks OpenAI's API, and prints latencies and throughput.

  fathom bench serve --num-prompts 100 --request-rate 4 --random-input-len 64 --ignore-eos

A request's latency is counted from when it was due, not from when it could be sent; without a
rate, --max-concurrency makes a closed loop, whose latencies are counted from the sending."""
EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 130
_METRICS_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchServe:
    """Everything that was asked."""

    dataset: DatasetConfig
    traffic: TrafficConfig
    target: TargetConfig
    sampling: SamplingConfig
    results: ResultConfig
    seed: int


GROUPS: tuple[tuple[str, type[Any]], ...] = (
    ("dataset", DatasetConfig),
    ("traffic", TrafficConfig),
    ("target", TargetConfig),
    ("sampling", SamplingConfig),
    ("results", ResultConfig),
)


def parse(arguments: list[str]) -> tuple[BenchServe, list[str]]:
    """What was asked, and notes on foreign flags. Raises: ConfigError."""
    foreign = foreign_flags("bench_serve")
    own, notes = translate(arguments, foreign)
    parser = FlagParser("bench serve", _DOC)
    parser.know(name for entry in foreign for name in entry.names)
    for title, config in GROUPS:
        add_flags(parser, config, title)
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals. Default: 0.")
    namespace = parser.parse(own)
    check_given(getattr(namespace, "dataset_name", "random"), vars(namespace))
    parts = {title: from_flags(config, namespace) for title, config in GROUPS}
    return BenchServe(**parts, seed=namespace.seed), notes


def main(arguments: list[str]) -> int:
    """Measure; 0 where every request was answered whole."""
    asked, notes = parse(arguments)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    wanted = wanted_of(asked.results)  # before the load, which may take long
    target = asked.target
    origin, key = origin_of(target), target.api_key or environment_api_key()
    headers = client_headers(target, key)
    client = Client(origin.url, key, headers=headers, verify_tls=target.verify_tls)
    served = served_name(client, target, asked.traffic.ready_check_timeout_sec)
    tokens = tokens_of(target.tokenizer, target.model, client, served)
    as_text = dialect_of(target) == "chat"
    requests = make_requests(asked.dataset, tokens, asked.seed, as_text=as_text)
    workload = make_workload(
        requests, asked.traffic, asked.seed, is_timed=asked.dataset.dataset_name == "timed_trace"
    )
    asking = asking_of(asked.target, asked.sampling, served, asked.traffic.request_timeout,
                       keeps_text=asked.results.save_detailed)  # fmt: skip
    http = HttpClient(origin, headers, WallClock().now_s, verify_tls=target.verify_tls)
    sender = OpenAISender(http, asking, WallClock().now_s)
    metrics = Client(
        origin.url, key, headers=headers, verify_tls=target.verify_tls, timeout_s=_METRICS_S
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = runner.run(_measure(asked, workload, tokens, sender, metrics))
    report, load = measured.report, measured.load
    told = result(report, wanted) | load.told(sum(one.output_tokens for one in report.complete))
    told |= measured.drafts
    print(table(told, wanted))
    _say_doubts(report, workload, load)
    if asked.results.save_result or asked.results.append_result:
        told |= {"workload_sha256": workload.digest(), "machine": machine_facts()}
        more = detailed(report.records) if asked.results.save_detailed else {}
        path = save(told | more, asked.results, asked.traffic, target, asked.dataset, served)
        print(f"written: {path}")
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if told["failed"] else 0


@dataclass(frozen=True, slots=True)
class _Measured:
    """A run, how busy this process was, and what drafts did meanwhile."""

    report: Report
    load: ClientLoad
    drafts: dict[str, float | int]


async def _measure(
    asked: BenchServe, workload: Workload, tokens: Tokens, sender: OpenAISender, metrics: Client
) -> _Measured:
    """Wait for the server, warm it up, measure. The first Ctrl-C ends whichever of them runs."""
    clock, stop = WallClock(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    try:
        await _prepare(asked, workload, tokens, sender, stop)
        before = draft_counters(metrics)
        bar = _Bar(len(workload.requests), is_wanted=asked.results.progress)
        async with ClientLoadMeter(clock.now_s) as meter:
            report = await drive(workload, sender, clock, stop=stop, watch=bar.see)
        bar.close()
        return _Measured(report, meter.load, draft_results(before, draft_counters(metrics)))
    finally:
        await sender.client.close()


async def _prepare(
    asked: BenchServe, workload: Workload, tokens: Tokens, sender: OpenAISender, stop: asyncio.Event
) -> None:
    """Until the server answers and is warm. Raises: UnavailableError."""
    traffic = asked.traffic
    timeout_s, count = traffic.ready_check_timeout_sec, traffic.num_warmups
    spare = warmup_requests(
        workload.requests,
        max(count, 1) if timeout_s else count,
        tokens,
        asked.seed,
        as_text=sender.asking.dialect == "chat",
    )
    if timeout_s:
        await until_it_answers(sender.client, sender.asking, spare[0], timeout_s, stop)
    if count and not stop.is_set():
        warm = Workload(requests=tuple(spare), max_concurrency=traffic.max_concurrency)
        _check_warm(await drive(warm, sender, WallClock(), stop=stop))


class _Bar:
    """Counts records on a terminal."""

    def __init__(self, total: int, *, is_wanted: bool) -> None:
        self._bar = ProgressBar(total, sys.stderr, is_wanted=is_wanted)
        self._num_ended = self._num_tokens = 0

    def see(self, record: RequestRecord) -> None:
        """One more has ended."""
        self._num_ended += 1
        self._num_tokens += record.output_tokens
        self._bar.update(self._num_ended, self._num_tokens)

    def close(self) -> None:
        """End the line."""
        self._bar.close()


def _check_warm(report: Report) -> None:
    if report.records and not report.complete and not report.is_interrupted:
        kind, (_, message) = next(iter(report.errors().items()))
        raise UnavailableError("no warm-up request was answered", found=f"{kind}: {message}")


def _say_doubts(report: Report, workload: Workload, load: ClientLoad) -> None:
    """What makes the numbers mean less than they seem to."""
    doubts = []
    if report.is_interrupted:
        doubts.append(
            f"interrupted: {len(report.records)} of {len(workload.requests)} requests were sent"
        )
    if load.is_bound:
        doubts.append(
            f"client-bound: this process used {load.cpu_share:.0%} of a core and was up to "
            f"{load.max_lag_s * 1000:.0f} ms late; the numbers are not the server's alone"
        )
    asked = sum(workload.requests[one.index].output_len for one in report.complete)
    got = sum(one.output_tokens for one in report.complete)
    if got < asked:
        doubts.append(f"answers ended early: {got} of {asked} tokens (--ignore-eos)")
    if report.is_closed:
        doubts.append("a closed loop asks a slow server less: for latencies give --request-rate")
    for doubt in doubts:
        print(f"note: {doubt}", file=sys.stderr)
