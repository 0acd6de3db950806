"""A simulation as one HTML file: its numbers and plots. It loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fathom.perf.report import percentile
from fathom.perf.result import ENGINE_ROWS, TITLES, Wanted, word
from fathom.perf.simulation import Simulation
from fathom.perf.svg import Series, chart

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 86rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .15rem .8rem; border-bottom: 1px solid #8884; text-align: right; }
td:first-child, th:first-child { text-align: left; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; font-size: 11px; } svg text { fill: currentColor; }
.grid { stroke: currentColor; opacity: .15; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_PERCENTS = tuple(range(101))


def page(
    found: Simulation, told: Mapping[str, Any], wanted: Wanted, about: Sequence[tuple[str, str]]
) -> str:
    """The page. `about` are rows of what was simulated, name and value."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>fathom simulate</title><style>{_STYLE}</style></head><body>"
        f"<h1>fathom simulate</h1>{_rows(about)}{_latencies(told, wanted)}"
        f"{_rows(_numbers(told))}<main>{''.join(_charts(found, told))}</main></body></html>\n"
    )


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _numbers(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Requests answered", str(told["completed"])),
        ("Requests failed", str(told["failed"])),
        ("Duration (s)", f"{told['duration']:.2f}"),
        ("Requests a second", f"{told['request_throughput']:.3f}"),
        ("Output tokens a second", f"{told['output_throughput']:.1f}"),
        ("Tokens a second, prompts too", f"{told['total_token_throughput']:.1f}"),
    ]
    if told["request_goodput"] is not None:
        rows.append(("Requests a second within the limits", f"{told['request_goodput']:.3f}"))
    for label, key in ENGINE_ROWS:
        value = told[key]
        rows.append((label, f"{value:.2f}" if isinstance(value, float) else str(value)))
    return rows


def _latencies(told: Mapping[str, Any], wanted: Wanted) -> str:
    heads = ["mean", "median", *(f"P{word(one)}" for one in wanted.percents)]
    keys = ["mean", "median", *(f"p{word(one)}" for one in wanted.percents)]
    rows = [f"<tr><th>milliseconds</th>{''.join(f'<th>{one}</th>' for one in heads)}</tr>"]
    for metric in wanted.metrics:
        cells = "".join(f"<td>{told[f'{key}_{metric}_ms']:.2f}</td>" for key in keys)
        rows.append(f"<tr><td>{escape(TITLES[metric][1])}</td>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _charts(found: Simulation, told: Mapping[str, Any]) -> list[str]:
    line = told["timeline"]
    report, time = found.report, "seconds since the start"

    def course(title: str, y_label: str, *named: tuple[str, str], scale: float = 1.0) -> str:
        series = [
            Series(name, line["end_s"], [value * scale for value in line[key]])
            for name, key in named
        ]
        return chart(title, series, x_label=time, y_label=y_label)

    answered = [one for one in report.complete if one.times_s]
    firsts = [1000 * (one.times_s[0] - one.due_s) for one in answered]
    first = Series("TTFT", [one.due_s for one in answered], firsts, is_dots=True)
    return [
        *(_percentiles(metric, report.samples_s(metric)) for metric in ("ttft", "tpot", "e2el")),
        chart("First tokens by arrival", [first], x_label=time, y_label="ms"),
        course("Sequences", "sequences", ("running", "running"), ("waiting", "waiting")),
        course("KV use", "% of pages", ("held by sequences", "kv_usage"), scale=100.0),
        course(
            "Throughput",
            "tokens a second",
            ("prompts", "prefill_tokens_per_s"),
            ("answers", "decode_tokens_per_s"),
        ),
        course("Longest step", "ms", ("longest step", "longest_step_s"), scale=1000.0),
    ]


def _percentiles(metric: str, samples_s: list[float]) -> str:
    """How many percent of the requests had at most which value."""
    ordered, (name, title) = sorted(samples_s), TITLES[metric]
    values = [1000 * percentile(ordered, one) for one in _PERCENTS]
    series = Series(name, _PERCENTS, values)
    return chart(title, [series], x_label="percent of requests", y_label="at most, ms")
