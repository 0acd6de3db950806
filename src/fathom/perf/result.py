"""A report as the JSON object and the table that vLLM's users know.

Keys are those of `vllm bench serve --save-result`; times in them are milliseconds. What fathom adds
stands beside them under names that vLLM has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.perf.report import Report, RequestRecord, Statistics, gaps_s

TITLES: Mapping[str, tuple[str, str]] = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "schedule_delay": ("Delay", "Schedule Delay (sent - due)"),
    "ttft_from_send": ("TTFT from send", "Time to First Token, from the sending"),
    "e2el_from_send": ("E2EL from send", "End-to-end Latency, from the sending"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": (
        "E2EL incl. Client Queue",
        "Queue-inclusive End-to-end Latency",
    ),
}
_COUNT_ROWS = (("Successful requests", "completed"), ("Failed requests", "failed"))
_RATE_ROWS = (
    ("Benchmark duration (s)", "duration"),
    ("Total input tokens", "total_input_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Request goodput (req/s)", "request_goodput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Peak output token throughput (tok/s)", "max_output_tokens_per_s"),
    ("Peak concurrent requests", "max_concurrent_requests"),
    ("Total token throughput (tok/s)", "total_token_throughput"),
    ("Latency counted from", "latency_counted_from"),
)
_DRAFT_ROWS = (
    ("Acceptance rate (%)", "spec_decode_acceptance_rate"),
    ("Acceptance length", "spec_decode_acceptance_length"),
    ("Drafts", "spec_decode_num_drafts"),
    ("Draft tokens", "spec_decode_draft_tokens"),
    ("Accepted tokens", "spec_decode_accepted_tokens"),
)
# What a simulation tells besides.
ENGINE_ROWS = (
    ("Steps", "num_steps"),
    ("Mean step (ms)", "mean_step_ms"),
    ("Mean sequences in a step", "mean_sequences"),
    ("Mean tokens in a step", "mean_tokens"),
    ("Devices busy (%)", "busy_percent"),
    ("Peak waiting requests", "peak_waiting"),
    ("Mean KV use (%)", "mean_kv_percent"),
    ("Peak KV use (%)", "peak_kv_percent"),
    ("Prefix cache hit rate (%)", "prefix_hit_percent"),
    ("Preemptions", "preemptions"),
)
_WIDTH = 54


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a report is shown: metrics by name, percentiles in percent, and limits in seconds
    for the goodput."""

    metrics: tuple[str, ...]
    percents: tuple[float, ...]
    goodput_s: tuple[tuple[str, float], ...] = ()


def result(report: Report, wanted: Wanted) -> dict[str, Any]:
    """The numbers of a run, by vLLM's names."""
    complete, duration_s = report.complete, report.duration_s
    num_input = sum(one.prompt_tokens for one in complete)
    num_output = sum(one.output_tokens for one in complete)
    rates = {
        "request_throughput": len(complete),
        "output_throughput": num_output,
        "total_token_throughput": num_input + num_output,
    }
    told: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(complete),
        "failed": len(report.records) - len(complete),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        **{name: _rate(count, duration_s) for name, count in rates.items()},
        "request_goodput": None,
        "max_output_tokens_per_s": report.peak_output_tokens_per_s(),
        "max_concurrent_requests": report.peak_concurrency(),
        "is_closed_loop": report.is_closed,
        "is_interrupted": report.is_interrupted,
        "latency_counted_from": "sending" if report.is_closed else "intended arrival",
        "errors_by_kind": {
            kind: {"count": count, "first": message}
            for kind, (count, message) in report.errors().items()
        },
    }
    if wanted.goodput_s:
        limits_s = dict(wanted.goodput_s)
        told["request_goodput"] = _rate(report.num_good(limits_s), duration_s)
        told["goodput_limits_ms"] = {name: limit * 1000 for name, limit in limits_s.items()}
    for metric in wanted.metrics:
        told |= _statistics(metric, report.samples_s(metric), wanted.percents)
    return told


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _statistics(metric: str, samples_s: list[float], percents: Sequence[float]) -> dict[str, float]:
    one = Statistics.of((value * 1000.0 for value in samples_s), percents)
    told = {
        f"mean_{metric}_ms": one.mean,
        f"median_{metric}_ms": one.median,
        f"std_{metric}_ms": one.std,
    }
    return told | {f"p{word(percent)}_{metric}_ms": value for percent, value in one.percentiles}


def detailed(records: Sequence[RequestRecord]) -> dict[str, list[Any]]:
    """Every request, by vLLM's names; seconds. `start_times` are sendings, after the start of the
    run; `due_times` are what fathom counts from."""
    return {
        "input_lens": [one.prompt_tokens for one in records],
        "output_lens": [one.output_tokens if one.is_complete else 0 for one in records],
        "ttfts": [one.times_s[0] - one.due_s if one.times_s else 0.0 for one in records],
        "itls": [gaps_s(one) for one in records],
        "latencies": [one.end_s - one.due_s for one in records],
        "start_times": [one.sent_s for one in records],
        "due_times": [one.due_s for one in records],
        "queue_times": [one.sent_s - one.due_s for one in records],
        "generated_texts": [one.text for one in records],
        "errors": [f"{one.error_kind}: {one.error}" if one.error_kind else "" for one in records],
    }


def table(told: Mapping[str, Any], wanted: Wanted, title: str = "Serving Benchmark Result") -> str:
    """The printed form of `result`."""
    return "\n".join(_lines(told, wanted, title))


def _lines(told: Mapping[str, Any], wanted: Wanted, title: str) -> Iterator[str]:
    yield f"{f' {title} ':=^{_WIDTH}}"
    yield from _rows(told, _COUNT_ROWS)
    if told["completed"]:
        yield from _measured(told, wanted)
    else:
        yield "No request was answered, so that there is nothing to measure."
    for kind, error in told["errors_by_kind"].items():
        yield f" {error['count']} failed: {kind} ".center(_WIDTH, "-")
        yield f"first: {error['first'][:300]}"
    yield "=" * _WIDTH


def _measured(told: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    yield from _rows(told, _RATE_ROWS)
    for metric in wanted.metrics:
        name, title = TITLES[metric]
        yield f"{title:-^{_WIDTH}}"
        yield _row(f"Mean {name} (ms):", told[f"mean_{metric}_ms"])
        yield _row(f"Median {name} (ms):", told[f"median_{metric}_ms"])
        for percent in wanted.percents:
            key = word(percent)
            yield _row(f"P{key} {name} (ms):", told[f"p{key}_{metric}_ms"])
    for title, rows in (("Speculative Decoding", _DRAFT_ROWS), ("Simulated Engine", ENGINE_ROWS)):
        shown = list(_rows(told, rows))
        yield from (f"{title:-^{_WIDTH}}", *shown) if shown else ()


def _rows(told: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Those that there are."""
    return (_row(f"{label}:", told[key]) for label, key in rows if told.get(key) is not None)


def _row(label: str, value: float | str) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {shown}"


def word(percent: float) -> str:
    """A percentile as it stands in a key: 99, or 99.9."""
    return str(int(percent)) if percent == int(percent) else str(percent)
