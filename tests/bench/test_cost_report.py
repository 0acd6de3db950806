"""The committed report of the cost model against what the product predicts today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import cost_data  # noqa: E402
import cost_serving  # noqa: E402

from fathom.perf.calibration import built_in  # noqa: E402
from fathom.spec.known import find_model  # noqa: E402

REPORT = json.loads((ROOT / "bench/results/cost.json").read_text(encoding="utf-8"))
GOALS = {"tpot": 0.15, "ttft": 0.35, "throughput": 0.20}


def test_every_point_is_predicted_as_the_report_says() -> None:
    spec, calibration = find_model("DeepSeek-V3").spec, built_in()
    told = {}
    for row in (*REPORT["fitted"]["points"], *REPORT["compared"]["points"]):
        told[row["id"], row["concurrency"], row["tpot"]["measured"]] = row
    found = [point for point in cost_data.points() if not point.excluded]
    assert len(found) == len(told)
    for point in found:
        row = told[point.id, point.concurrency, float(f"{point.tpot_ms:.5g}")]
        for name, (predicted, _) in cost_serving.predict(spec, point, calibration).measures.items():
            assert predicted == pytest.approx(row[name]["predicted"], rel=1e-3), (point.id, name)


def test_median_errors_of_points_never_fitted_meet_the_goals() -> None:
    for name, goal in GOALS.items():
        assert REPORT["compared"]["medians"]["all"][name]["median_error"] <= goal


def test_no_point_is_both_fitted_and_compared() -> None:
    fitted = {row["id"] for row in REPORT["fitted"]["points"]}
    assert fitted
    assert not fitted & {row["id"] for row in REPORT["compared"]["points"]}
    assert all("1024x1024" in one and "h200_sglang" in one for one in fitted)
