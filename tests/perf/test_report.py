"""Compares the report's numbers with numpy's, and with a recomputation from the detailed records by
the formulas that vLLM's documentation gives."""

from __future__ import annotations

from itertools import pairwise

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.perf.report import METRICS, Report, RequestRecord, Statistics, percentile
from fathom.perf.result import Wanted, detailed, result, table

TIMES = st.floats(0, 1e4, allow_nan=False)
SAMPLES = st.lists(TIMES, min_size=1, max_size=60)


@given(SAMPLES, st.floats(0, 100))
def test_percentiles_are_numpys(samples: list[float], percent: float) -> None:
    ours = percentile(sorted(samples), percent)
    assert ours == pytest.approx(float(numpy.percentile(samples, percent)), rel=1e-9, abs=1e-9)


@given(SAMPLES)
def test_statistics_are_numpys(samples: list[float]) -> None:
    one = Statistics.of(samples, (50.0,))
    assert one.count == len(samples)
    assert one.mean == pytest.approx(float(numpy.mean(samples)))
    assert one.median == pytest.approx(float(numpy.median(samples)))
    assert one.std == pytest.approx(float(numpy.std(samples)), rel=1e-6, abs=1e-6)


@st.composite
def records(draw: st.DrawFn) -> tuple[RequestRecord, ...]:
    made = []
    for index in range(draw(st.integers(0, 12))):
        due_s = draw(st.floats(0, 50))
        sent_s = due_s + draw(st.floats(0, 5))
        gaps = draw(st.lists(st.floats(0.001, 2), max_size=8))
        times = [sent_s + sum(gaps[: count + 1]) for count in range(len(gaps))]
        end_s = (times[-1] if times else sent_s) + draw(st.floats(0, 1))
        made.append(
            RequestRecord(
                index=index,
                due_s=due_s,
                sent_s=sent_s,
                end_s=end_s,
                times_s=tuple(times),
                prompt_tokens=draw(st.integers(1, 99)),
                output_tokens=len(times) + draw(st.integers(0, 3)) if times else 0,
                error_kind=draw(st.sampled_from(["", "", "", "HTTP 503", "timeout"])),
                error="message",
            )
        )
    return tuple(made)


@given(records())
def test_results_follow_from_the_detailed_records(made: tuple[RequestRecord, ...]) -> None:
    """As somebody would who has only the file."""
    report = Report(records=made, duration_s=60.0)
    wanted = Wanted(metrics=METRICS, percents=(50.0, 99.9), goodput_s=(("ttft", 3.0), ("e2el", 6)))
    told, rows = result(report, wanted), detailed(made)
    good = [index for index, error in enumerate(rows["errors"]) if not error]
    lens = [rows["output_lens"][index] for index in good]
    assert (told["completed"], told["failed"]) == (len(good), len(made) - len(good))
    assert told["total_output_tokens"] == sum(lens)
    assert told["output_throughput"] == pytest.approx(sum(lens) / 60.0)
    assert told["request_throughput"] == pytest.approx(len(good) / 60.0)
    num_input = sum(rows["input_lens"][index] for index in good)
    assert told["total_token_throughput"] == pytest.approx((num_input + sum(lens)) / 60.0)
    answered = [index for index in good if made[index].times_s]
    samples = {
        "ttft": [rows["ttfts"][index] for index in answered],
        "e2el": [rows["latencies"][index] for index in good],
        "itl": [gap for index in good for gap in rows["itls"][index]],
        "tpot": [
            (rows["latencies"][index] - rows["ttfts"][index]) / (rows["output_lens"][index] - 1)
            for index in answered
            if rows["output_lens"][index] > 1
        ],
        "schedule_delay": [rows["queue_times"][index] for index in good],
        "e2el_from_send": [rows["latencies"][index] - rows["queue_times"][index] for index in good],
    }
    for name, values in samples.items():
        milliseconds = numpy.array(values or [0.0]) * 1000
        assert told[f"mean_{name}_ms"] == pytest.approx(float(milliseconds.mean()), abs=1e-6)
        assert told[f"median_{name}_ms"] == told[f"p50_{name}_ms"]
        assert told[f"p99.9_{name}_ms"] == pytest.approx(
            float(numpy.percentile(milliseconds, 99.9)), abs=1e-6
        )
        assert told[f"std_{name}_ms"] == pytest.approx(float(milliseconds.std()), abs=1e-6)
    within = [
        index
        for index in good
        if (not made[index].times_s or rows["ttfts"][index] <= 3.0)
        and rows["latencies"][index] <= 6
    ]
    assert told["request_goodput"] == pytest.approx(len(within) / 60.0)


@given(records())
def test_peak_concurrency_is_what_counting_finds(made: tuple[RequestRecord, ...]) -> None:
    moments = sorted({time for one in made for time in (one.sent_s, one.end_s)})
    between = [(low + high) / 2 for low, high in pairwise(moments)]
    wanted = max(
        (sum(one.sent_s <= moment < one.end_s for one in made) for moment in between), default=0
    )
    assert Report(records=made, duration_s=1.0).peak_concurrency() == wanted


@given(records())
def test_seconds_hold_all_tokens(made: tuple[RequestRecord, ...]) -> None:
    report = Report(records=made, duration_s=1.0)
    total = sum(one.output_tokens for one in report.complete)
    seconds = {int(time) for one in report.complete for time in one.times_s}
    peak = report.peak_output_tokens_per_s()
    assert peak <= total + 1e-9
    assert peak * max(1, len(seconds)) >= total - 1e-6


def test_errors_are_counted_by_kind_with_the_first_message() -> None:
    kinds = ["", "timeout", "HTTP 503", "timeout"]
    made = tuple(
        RequestRecord(index=index, due_s=0, sent_s=0, end_s=1, error_kind=kind, error=f"m{index}")
        for index, kind in enumerate(kinds)
    )
    report = Report(records=made, duration_s=1.0)
    assert report.errors() == {"timeout": (2, "m1"), "HTTP 503": (1, "m2")}
    wanted = Wanted(metrics=("ttft",), percents=(99.0,))
    shown = table(result(report, wanted), wanted)
    assert "2 failed: timeout" in shown
    assert "first: m2" in shown
    assert "Failed requests:                         3" in shown
