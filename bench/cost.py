"""Fits the cost model, predicts every served point, and writes what came of it.

    python bench/cost.py

Writes src/fathom/perf/calibration/h200.json (what the product reads), bench/results/cost.json
(every point), docs/cost-model.md and the plots beside it. cost_data.py says which points are fitted
and which are only compared. Deterministic: the same data give the same bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cost_data import FITTED, GPUS, points
from cost_kernels import Fitted, fit_kernels
from cost_page import page, plots
from cost_published import LEFT_OUT, compare
from cost_serving import Predicted, fit_serving, predict

from fathom.perf.calibration import Calibration, Law
from fathom.perf.rates import cluster_rates
from fathom.spec.catalogue import parse_cluster
from fathom.spec.known import find_model

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "sglang"
# Not in the table of kernels. Attention over prompts: half of the peak, where FlashAttention-3 is
# published to reach three quarters with even heads. Exchanges: DeepEP publishes 153 of 200 GB/s
# within a node of H800 and 43 to 58 of 50 GB/s between nodes.
ASSUMED = {
    "prefill": Law(1e-5, bandwidth=0.7, compute=0.5),
    "rows": Law(bandwidth=0.6),
    "exchange": Law(1e-5, bandwidth=0.75),
    "send": Law(1e-5, bandwidth=0.75),
}
# Of bench/results/scheduler.json: 0.45 ms for a step of 256 sequences.
HOST_STEP_S, HOST_SEQUENCE_S = 3e-4, 1e-6
SOURCE = (
    "bench/cost.py: kernels of SGLang 0.5.10 on H200 (bench/data/kernels_h200.csv) and its serving "
    "of 1024 tokens in and out (bench/data/silicon_deepseek_fp8.csv), both of "
    "https://github.com/ai-dynamo/aiconfigurator"
)


def fitted(kernels: dict[str, Fitted]) -> Calibration:
    """The calibration before anything was compared."""
    start = Calibration(
        name="h200",
        machine=GPUS[FITTED[0]],
        source=SOURCE,
        licence="fitted to Apache-2.0 data of ai-dynamo/aiconfigurator",
        date="2026-11-25",
        peaks=cluster_rates(parse_cluster("8xH200")).peaks,
        laws={**ASSUMED, **{kind: found.law for kind, found in kernels.items()}},
        host_step_s=HOST_STEP_S,
        host_sequence_s=HOST_SEQUENCE_S,
    )
    used = [point for point in points() if point.is_fitted and point.engine == ENGINE]
    return fit_serving(find_model("DeepSeek-V3").spec, used, start)


def spreads(found: Iterable[Predicted]) -> dict[str, tuple[float, float]]:
    """Tenth and ninetieth hundredth of measured over predicted, of points not fitted."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for one in found:
        prefix = "" if one.point.system == FITTED[0] else "other/"
        for name, (predicted, measured) in one.measures.items():
            ratios[prefix + name].append(measured / predicted)
    return {name: (_at(seen, 0.1), _at(seen, 0.9)) for name, seen in sorted(ratios.items())}


def _at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[round(share * (len(ordered) - 1))], 3)


def medians(found: Iterable[Predicted]) -> dict[str, dict[str, Any]]:
    """Median relative errors, by system and engine and over all."""
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        for group in (f"{one.point.system} {one.point.engine}", "all"):
            for name, (predicted, measured) in one.measures.items():
                errors[group][name].append(abs(predicted / measured - 1))
    return {
        group: {
            name: {"points": len(seen), "median_error": round(median(seen), 4)}
            for name, seen in sorted(by_name.items())
        }
        for group, by_name in sorted(errors.items())
    }


def _row(one: Predicted) -> dict[str, Any]:
    point = one.point
    told: dict[str, Any] = {
        "id": point.id,
        "system": point.system,
        "engine": f"{point.engine} {point.version}".strip(),
        "tp": point.layout.tp,
        "dp": point.layout.dp,
        "ep": point.layout.ep,
        "isl": point.isl,
        "osl": point.osl,
        "concurrency": point.concurrency,
        "decode_workers": point.workers if point.is_decode_only else None,
        "kv_limited": one.is_limited,
        "excluded": point.excluded,
    }
    for name, (predicted, measured) in one.measures.items():
        error = round(predicted / measured - 1, 4)
        told[name] = {
            "predicted": float(f"{predicted:.5g}"),
            "measured": float(f"{measured:.5g}"),
            "error": error,
        }
    return told


def main() -> None:
    kernels = fit_kernels()
    calibration = fitted(kernels)
    spec = find_model("DeepSeek-V3").spec
    every = points()
    found = [predict(spec, point, calibration) for point in every if not point.excluded]
    used = [one for one in found if one.point.is_fitted and one.point.engine == ENGINE]
    compared = [one for one in found if one not in used]
    calibration = replace(calibration, spread=spreads(compared))
    excluded: dict[str, list[str]] = defaultdict(list)
    for point in every:
        if point.excluded:
            excluded[point.excluded].append(point.id)
    report: dict[str, Any] = {
        "command": "python bench/cost.py",
        "split": "fitted: " + ", ".join(one.point.id for one in used),
        "constants": {
            name: getattr(calibration, name) for name in ("layer_s", "skew", "first_token_s")
        },
        "kernels": {
            kind: {"fitted": one.num_samples, "held_out_median_error": round(one.held_out_error, 4)}
            for kind, one in kernels.items()
        },
        "fitted": {"medians": medians(used), "points": [_row(one) for one in used]},
        "compared": {"medians": medians(compared), "points": [_row(one) for one in compared]},
        "spread": calibration.spread,
        "excluded": dict(sorted(excluded.items())),
        "published": {"compared": compare(spec, calibration), "left_out": LEFT_OUT},
    }
    write(ROOT / "src/fathom/perf/calibration/h200.json", calibration.to_json())
    write(ROOT / "bench/results/cost.json", json.dumps(report, indent=1) + "\n")
    for name, text in plots(report).items():
        write(ROOT / "docs/cost-model" / name, text)
    write(ROOT / "docs/cost-model.md", page(report, calibration))
    print(json.dumps(report["compared"]["medians"], indent=1))


def write(path: Path, text: str) -> None:
    """Make `path`, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
