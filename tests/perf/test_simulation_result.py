"""A simulation's numbers against its records, its trace against the Trace Event Format, and its
page against an HTML parser."""

from __future__ import annotations

import json
import math
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from random import Random
from xml.etree import ElementTree

import pytest

from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.perf.chrome_trace import chrome_trace
from fathom.perf.datasets import PrefixShape, prefix_requests
from fathom.perf.plan_shape import LinearTime
from fathom.perf.result import Wanted, table
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment, Simulation
from fathom.perf.simulation_page import page
from fathom.perf.simulation_result import SCHEMA, told
from fathom.perf.svg import Series, chart
from fathom.perf.virtual import Runs, VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload, arrive, gamma_arrivals

WANTED = Wanted(
    metrics=("ttft", "tpot", "itl", "e2el"),
    percents=(90.0, 99.0),
    goodput_s=(("ttft", 0.2), ("tpot", 0.05)),
)


@pytest.fixture(scope="module")
def found() -> Simulation:
    shape = PrefixShape(prefix_len=64, suffix_len=30, num_prefixes=4, output_len=12)
    made = prefix_requests(120, shape, VirtualVocabulary(), Random(3))
    too_long = LoadRequest(prompt=Runs(((1, 999),)), prompt_len=999, output_len=1)
    load = arrive([*made, too_long], gamma_arrivals(121, 30.0, Random(4)))
    deployment = Deployment(
        capacity=Capacity(100, 16, 64, 8, 2), scheduler=SchedulerConfig(max_model_len=256)
    )
    return simulate(Workload(requests=load), deployment, LinearTime())


def test_numbers_are_those_of_the_records(found: Simulation) -> None:
    numbers, line = told(found, WANTED), found.timeline
    assert numbers["schema"] == SCHEMA == "fathom.simulate/1"
    assert (numbers["completed"], numbers["failed"]) == (120, 1)
    firsts = sorted(1000 * (one.times_s[0] - one.due_s) for one in found.report.complete)
    assert numbers["median_ttft_ms"] == pytest.approx((firsts[59] + firsts[60]) / 2)
    good = sum(
        one.times_s[0] - one.due_s <= 0.2 and (one.end_s - one.times_s[0]) / 11 <= 0.05
        for one in found.report.complete
    )
    assert numbers["request_goodput"] == pytest.approx(good / found.report.duration_s)
    assert 0 < good < 120
    # All but the first of each prefix find its 64 tokens, unless they were evicted.
    assert 0.9 < numbers["prefix_hit_percent"] / (100 * 116 * 64 / (120 * 94)) <= 1
    assert numbers["num_steps"] == len(line)
    assert numbers["peak_kv_percent"] == pytest.approx(100 * max(line.kv_usage))
    assert 0 < numbers["mean_kv_percent"] < numbers["peak_kv_percent"] <= 100
    assert 0 < numbers["busy_percent"] <= 100
    assert numbers["peak_waiting"] == max(line.waiting)
    assert json.loads(json.dumps(numbers)) == numbers
    for label in ("Prefix cache hit rate (%):", "Preemptions:", "P90 TTFT (ms):"):
        assert label in table(numbers, WANTED, "Simulated")


def test_intervals_hold_all_that_was_computed(found: Simulation) -> None:
    course, line = told(found, WANTED)["timeline"], found.timeline
    width_s = course["end_s"][0]
    assert course["end_s"][-1] == pytest.approx(found.report.duration_s)
    prefill = sum(course["prefill_tokens_per_s"]) * width_s
    assert prefill == pytest.approx(sum(line.prefill_tokens))
    decode = sum(course["decode_tokens_per_s"]) * width_s
    assert prefill + decode == pytest.approx(sum(line.num_tokens))
    assert {len(column) for column in course.values()} == {len(course["end_s"])}


def test_the_trace_has_every_step_and_every_request(found: Simulation) -> None:
    trace = json.loads(b"".join(chrome_trace(found)))
    events, line = trace["traceEvents"], found.timeline
    steps = [one for one in events if one["ph"] == "X"]
    assert len(steps) == len(line)
    assert sum(one["args"]["tokens"] for one in steps) == sum(line.num_tokens)
    for before, after in pairwise(steps):
        assert before["ts"] + before["dur"] <= after["ts"] + 0.01  # microseconds, rounded
    begins = [one for one in events if one["ph"] == "b"]
    ends = [one for one in events if one["ph"] == "e"]
    spans = Counter((one["id"], one["name"]) for one in begins)
    assert spans == Counter((one["id"], one["name"]) for one in ends)
    assert set(spans.values()) == {1}
    assert len({one["id"] for one in begins}) == 121
    assert {one["name"] for one in begins if one["id"] == 5} == {
        *("request 5", "queued", "prefill", "decode"),
    }


class Strict(HTMLParser):
    """Notes tags, and refuses ends that nothing began."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes(found: Simulation) -> None:
    evil = "<script>alert('&')</script>"
    text = page(found, told(found, WANTED), WANTED, [("Model", evil), (evil, "8 x H20")])
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert parser.tags["svg"] == 8
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;" in text


def test_a_chart_is_xml_and_keeps_its_points_inside() -> None:
    xs = [float(one) for one in range(5000)]
    series = Series("a & <b>", xs, [one * one for one in xs])
    figure = ElementTree.fromstring(chart("t < u", [series], x_label="x", y_label="<y>"))
    [line] = figure.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert 500 <= len(points) <= 1000
    assert all(64 <= x <= 640 and 14 <= y <= 220 for x, y in points)
    assert points == sorted(points, key=lambda one: (one[0], -one[1]))
    nothing = chart("empty", [Series("none", [], [])], x_label="x", y_label="y")
    assert ElementTree.fromstring(nothing) is not None
    assert "nan" not in chart("odd", [Series("a", [0.0], [math.inf])], x_label="x", y_label="y")
