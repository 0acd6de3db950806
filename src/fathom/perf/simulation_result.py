"""A simulation as numbers: those of any run, those of the engine, and its course in intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fathom.perf.result import Wanted, result
from fathom.perf.simulation import Simulation, Timeline

SCHEMA = "fathom.simulate/1"
"""Changes when a key loses its meaning."""
_INTERVALS = 200


def told(found: Simulation, wanted: Wanted) -> dict[str, Any]:
    """The numbers of a simulation; those that a measured run has too have the same names."""
    line, stats = found.timeline, found.stats
    lengths_s = [end - begin for begin, end in zip(line.begin_s, line.end_s, strict=True)]
    busy_s, count = sum(lengths_s), max(1, len(line))
    queries = sum(one.prefix_queries for one in stats)
    return {
        "schema": SCHEMA,
        **result(found.report, wanted),
        "num_steps": len(line),
        "mean_step_ms": 1000 * busy_s / count,
        "mean_sequences": sum(line.num_sequences) / count,
        "mean_tokens": sum(line.num_tokens) / count,
        "busy_percent": 100 * busy_s / (line.end_s[-1] if line.end_s else 1.0),
        "peak_waiting": max(line.waiting, default=0),
        "mean_kv_percent": 100 * _weighted(line.kv_usage, lengths_s),
        "peak_kv_percent": 100 * max(line.kv_usage, default=0.0),
        "prefix_hit_percent": 100 * sum(one.prefix_hits for one in stats) / max(1, queries),
        "preemptions": sum(one.preemptions for one in stats),
        "timeline": intervals(line, found.report.duration_s),
    }


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    whole = sum(weights)
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / whole if whole else 0.0


def intervals(line: Timeline, duration_s: float) -> dict[str, list[float]]:
    """The course of a run in equal intervals, of which each has the steps that ended in it: their
    mean sequences, queue and share of KV, tokens a second, and the longest step. An interval
    without one has the values of 0."""
    count = min(_INTERVALS, max(1, len(line)))
    width_s = duration_s / count if duration_s > 0 else 1.0
    names = ("running", "waiting", "kv_usage", "prefill_tokens_per_s", "decode_tokens_per_s",
             "longest_step_s")  # fmt: skip
    columns: dict[str, list[float]] = {name: [0.0] * count for name in names}
    steps = [0] * count
    for index, end_s in enumerate(line.end_s):
        place = min(count - 1, int(end_s / width_s))
        steps[place] += 1
        columns["running"][place] += line.running[index]
        columns["waiting"][place] += line.waiting[index]
        columns["kv_usage"][place] += line.kv_usage[index]
        prefill = line.prefill_tokens[index]
        columns["prefill_tokens_per_s"][place] += prefill / width_s
        columns["decode_tokens_per_s"][place] += (line.num_tokens[index] - prefill) / width_s
        longest = columns["longest_step_s"]
        longest[place] = max(longest[place], end_s - line.begin_s[index])
    for name in ("running", "waiting", "kv_usage"):
        columns[name] = [value / max(1, n) for value, n in zip(columns[name], steps, strict=True)]
    return {"end_s": [(index + 1) * width_s for index in range(count)], **columns}
