"""The page and the plots of bench/cost.py: what was predicted, what was measured, how far apart."""

from __future__ import annotations

from math import log10
from typing import Any

from fathom.perf.calibration import Calibration

_COLOURS = {
    "h200_sxm sglang": "#1f77b4",
    "h200_sxm trtllm": "#2ca02c",
    "b200_sxm sglang": "#ff7f0e",
    "b200_sxm trtllm": "#d62728",
}
_SIZE, _EDGE = 360, 46
_UNITS = {"tpot": "TPOT, ms", "ttft": "TTFT, ms", "throughput": "tokens in and out per second"}


def plots(report: dict[str, Any]) -> dict[str, str]:
    """SVG by file name: predicted over measured, on logarithmic axes."""
    return {f"{name}.svg": _scatter(report, name) for name in _UNITS}


def _scatter(report: dict[str, Any], name: str) -> str:
    rows = [("fitted", row) for row in report["fitted"]["points"]]
    rows += [("compared", row) for row in report["compared"]["points"]]
    dots = [(kind, row, row[name]) for kind, row in rows if name in row]
    values = [value[side] for _, _, value in dots for side in ("predicted", "measured")]
    low, high = log10(min(values) / 1.1), log10(max(values) * 1.1)
    inner = _SIZE - 2 * _EDGE

    def at(value: float) -> float:
        return (log10(value) - low) / (high - low) * inner

    def place(measured: float, predicted: float) -> tuple[str, str]:
        return f"{_EDGE + at(measured):.1f}", f"{_SIZE - _EDGE - at(predicted):.1f}"

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIZE}" height="{_SIZE + 60}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_SIZE}" height="{_SIZE + 60}" fill="#fff"/>',
        f'<rect x="{_EDGE}" y="{_EDGE}" width="{inner}" height="{inner}" fill="none" '
        'stroke="#888"/>',
    ]
    for factor, dash in ((1.0, ""), (1.25, "3 3"), (0.8, "3 3")):
        first, last = 10**low * max(1, 1 / factor), 10**high / max(1, factor)
        (x1, y1), (x2, y2) = place(first, first * factor), place(last, last * factor)
        drawn.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#888" '
            f'stroke-dasharray="{dash}"/>'
        )
    for value in _ticks(10**low, 10**high):
        x, y = place(value, value)
        drawn.append(
            f'<text x="{x}" y="{_SIZE - _EDGE + 14}" text-anchor="middle">{value:g}</text>'
            f'<text x="{_EDGE - 4}" y="{y}" text-anchor="end">{value:g}</text>'
        )
    for kind, row, value in dots:
        x, y = place(value["measured"], value["predicted"])
        colour = _COLOURS[f"{row['system']} {row['engine'].partition(' ')[0]}"]
        fill = "none" if kind == "fitted" else colour
        drawn.append(
            f'<circle cx="{x}" cy="{y}" r="3.2" fill="{fill}" stroke="{colour}">'
            f"<title>{row['id']}</title></circle>"
        )
    drawn.append(
        f'<text x="{_SIZE / 2}" y="16" text-anchor="middle">{_UNITS[name]}: predicted (up) and '
        f'measured</text><text x="{_SIZE / 2}" y="{_SIZE - 12}" text-anchor="middle">'
        "dashed: 25 % off; hollow: fitted</text>"
    )
    for index, (label, colour) in enumerate(_COLOURS.items()):
        x, y = _EDGE + index % 2 * 140, _SIZE + 12 + index // 2 * 20
        drawn.append(
            f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{x + 8}" y="{y + 4}">{label}</text>'
        )
    return "\n".join([*drawn, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    ticks = [digit * 10.0**power for power in range(-1, 7) for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def page(report: dict[str, Any], calibration: Calibration) -> str:
    """Markdown."""
    constants, compared = report["constants"], report["compared"]
    lines = [
        "# How well the cost model predicts",
        "",
        "Made by `python bench/cost.py` from `bench/data/`; every point is in",
        "`bench/results/cost.json`. Do not edit: run it again.",
        "",
        "A step's time is the sum over its kernels of",
        "`fixed + |bytes / (bandwidth x share), operations / (peak x share)|`, the length of a",
        "hypotenuse: bound by the larger, and by both where they are alike; and of a time for each",
        "of the units that follow one another within a kernel. The constants are of SGLang",
        "0.5.10's kernels on one H200. On other GPUs, what a kernel misses of nine tenths of the",
        "peak of the matrix units scales with the rate of float32. Three more constants come from",
        f"serving: {constants['layer_s'] * 1e6:.3g} us of small kernels a layer, experts chosen in",
        f"proportion to rank^-{constants['skew']:.3g}, and "
        f"{constants['first_token_s'] * 1e3:.0f} ms that a first token waits beside its queue",
        "and its prompt (the client, the server, the scheduler).",
        "",
        "**Split**, by configuration: SGLang's points of 1024 tokens in and 1024 out on 8 H200",
        "are fitted (5). Other lengths, systems, layouts and engines are only compared. The",
        "five of TensorRT-LLM were fitted at first, for constants of its own; that was given up",
        "after both were seen. No constant is fitted to compared points (the efficiency of",
        "exchanges between ranks was set again after some, from DeepEP's published figures), and",
        "four choices of form were made after some:",
        "one engine's constants for all (with TensorRT-LLM 1.2's published kernels its own served",
        "points of older versions come out up to 16 % too slow); a second way of all-reduces for",
        "large messages, fitted to the kernels (prompts of 8192 tokens had come out a third too",
        "slow); missed peaks that scale with float32 (prefill on H20, a published throughput",
        "below, had come out at half); and balanced experts, whose tokens cross the network once",
        "for each node at DeepEP's published share of the link (two published throughputs of wide",
        "expert parallelism below had come out at a quarter). So read the errors as those of a",
        "model whose form knew of these points, and whose numbers did not.",
        "",
        "![TPOT](cost-model/tpot.svg) ![TTFT](cost-model/ttft.svg) "
        "![throughput](cost-model/throughput.svg)",
        "",
        "## Median errors on points that were never fitted",
        "",
        "| system and engine | TPOT | TTFT | throughput |",
        "|---|---|---|---|",
    ]
    for group, found in compared["medians"].items():
        cells = [_median(found.get(name)) for name in _UNITS]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    fitted = report["fitted"]["medians"]["all"]
    cells = [_median(fitted[name]) for name in _UNITS]
    lines += [f"| (the fitted points) | {' | '.join(cells)} |", ""]
    lines += [
        "Goals: 15 %, 35 %, 20 %. Attention over prompts, exchanges between ranks of expert",
        "parallelism and passes over rows have no measured kernel: their efficiencies are assumed,",
        "in `bench/cost.py`. From the same errors come the intervals of a prediction: eight of ten",
        "measurements over predictions lay in",
        "",
        "| of | TPOT | TTFT | throughput |",
        "|---|---|---|---|",
        f"| H200 | {_spread(calibration, '')} |",
        f"| other GPUs | {_spread(calibration, 'other/')} |",
        "",
        "## Kernels",
        "",
        "| kernel | sizes fitted | median error on the others |",
        "|---|---|---|",
    ]
    for kind, one in report["kernels"].items():
        lines.append(f"| {kind} | {one['fitted']} | {one['held_out_median_error']:.1%} |")
    lines += ["", "## Points", "", "Predicted / measured, error.", ""]
    lines += ["| system, engine | tp dp ep | in/out | users | TPOT ms | TTFT ms | tokens/s |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_point(row) for row in compared["points"]]
    lines += ["", "Users of disaggregated rows are those of one decode worker.", ""]
    lines += ["## Published throughputs", ""]
    lines += ["| row | what | predicted | measured | error | note |", "|---|---|---|---|---|---|"]
    for row in report["published"]["compared"]:
        lines.append(
            f"| [{row['id']}]({row['source']}) | {row['what']} | {row['predicted']:.0f} | "
            f"{row['measured']:.0f} | {row['error']:+.0%} | {row['note']} |"
        )
    lines += ["", "Left out: " + "; ".join(f"{k}: {v}" for k, v in _left_out(report)) + ".", ""]
    lines += [
        "## Rows left out",
        "",
        "Their ids are in `bench/results/cost.json`.",
        "",
        "| rows | reason |",
        "|---|---|",
    ]
    lines += [f"| {len(ids)} | {reason} |" for reason, ids in report["excluded"].items()]
    lines += ["| 449 | FP4, a format that fathom does not have (not copied) |", ""]
    return "\n".join(lines)


def _left_out(report: dict[str, Any]) -> list[tuple[str, str]]:
    return list(report["published"]["left_out"].items())


def _median(found: dict[str, Any] | None) -> str:
    return f"{found['median_error']:.1%} of {found['points']}" if found else "-"


def _spread(calibration: Calibration, prefix: str) -> str:
    cells = [calibration.spread[prefix + name] for name in _UNITS]
    return " | ".join(f"{low:.2f} to {high:.2f}" for low, high in cells)


def _point(row: dict[str, Any]) -> str:
    cells = []
    for name in _UNITS:
        one = row.get(name)
        cells.append(
            f"{one['predicted']:.4g} / {one['measured']:.4g}, {one['error']:+.0%}" if one else "-"
        )
    users = row["concurrency"] // (row["decode_workers"] or 1)
    limited = " (KV full)" if row["kv_limited"] else ""
    decode = " decode" if row["decode_workers"] else ""
    return (
        f"| {row['system']}, {row['engine']}{decode} | {row['tp']} {row['dp']} {row['ep']} | "
        f"{row['isl']}/{row['osl']} | {users}{limited} | {' | '.join(cells)} |"
    )
