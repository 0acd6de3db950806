"""The long run of a closed loop against queueing theory, and the search against known minima."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration, built_in
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.minimize import minimize, minimize_positive
from fathom.perf.parts import Formats
from fathom.perf.shape import StepShape
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment
from fathom.perf.steady import Load, steady
from fathom.perf.virtual import VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload
from fathom.spec.catalogue import parse_cluster
from fathom.spec.formats import FP8_BLOCK
from fathom.spec.known import find_model
from fathom.spec.parallel import Layout


@dataclass(frozen=True)
class Fixed:
    """Steps of constant time, prompts of a time for each token."""

    step_s: float
    token_s: float
    layout = Layout()
    calibration = Calibration(name="", machine="", source="", date="", laws={})

    def device_s(self, shape: StepShape) -> float:
        decoding = self.step_s if shape.decode_sequences else 0.0
        return decoding + self.token_s * shape.prefill_tokens

    def host_s(self, shape: StepShape) -> float:
        return 0.0


def model(step_s: float = 0.01, token_s: float = 1e-5) -> CostModel:
    return cast(CostModel, Fixed(step_s, token_s))


LOAD = Load(concurrency=1, input_len=1000, output_len=100)


def test_one_user_waits_for_nobody() -> None:
    found = steady(model(), LOAD)
    assert found.tpot_s == pytest.approx(0.01)
    assert found.ttft_s == pytest.approx(0.01)
    assert (found.shared_s, found.ahead_s) == (0.0, 0.0)
    assert found.output_per_s == pytest.approx(100 / found.request_s)


def test_prompts_alone_bound_the_rate() -> None:
    """With answers that cost nothing, requests a second are the prefill's rate."""
    load = replace(LOAD, concurrency=200, output_len=1)
    found = steady(model(step_s=1e-6), load)
    assert found.requests_per_s == pytest.approx(1 / 0.01, rel=0.01)
    assert found.ttft_s == pytest.approx(200 * 0.01, rel=0.01)
    assert found.prefill_share == pytest.approx(1.0, abs=0.01)


def test_prompts_of_others_come_between_the_steps_of_an_answer() -> None:
    """In the time of an answer each other user asks about once, and the answer pauses for it."""
    load = replace(LOAD, concurrency=16, output_len=2000)
    found = steady(model(), load)
    assert found.tpot_s == pytest.approx(0.01 + 15 * 0.01 / 2000, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 20_000),
    st.integers(1, 4000),
    st.floats(1e-4, 0.1),
    st.floats(1e-7, 1e-4),
)
def test_littles_law_and_order_hold(
    users: int, prompt: int, answer: int, step_s: float, token_s: float
) -> None:
    load = Load(concurrency=users, input_len=prompt, output_len=answer)
    found = steady(model(step_s, token_s), load)
    assert found.requests_per_s * found.request_s == pytest.approx(users)
    assert found.tpot_s >= step_s * (1 - 1e-9)
    assert found.requests_per_s <= 1 / (prompt * token_s) * (1 + 1e-6)
    more = steady(model(step_s, token_s), replace(load, concurrency=2 * users))
    assert more.request_s >= found.request_s * (1 - 1e-3)
    assert more.total_per_s >= found.total_per_s * (1 - 1e-3)


def test_users_wait_where_the_cache_is_full() -> None:
    load = replace(LOAD, concurrency=64, kv_tokens=16 * 1050)
    found, free = steady(model(), load), steady(model(), replace(load, concurrency=16))
    assert found.running == 16
    assert found.total_per_s == pytest.approx(free.total_per_s, rel=1e-6)
    assert found.ttft_s == pytest.approx(free.ttft_s + 48 / free.requests_per_s)


def test_a_cached_prefix_is_not_computed() -> None:
    whole = steady(model(), LOAD)
    cached = steady(model(), replace(LOAD, cached_len=900))
    assert cached.ttft_s == pytest.approx(whole.ttft_s - 0.009)


@pytest.mark.parametrize(
    "wrong",
    [{"concurrency": 0}, {"output_len": 0}, {"cached_len": 1000}, {"kv_tokens": 1099}],
)
def test_loads_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"load|KV cache"):
        replace(LOAD, **wrong)  # type: ignore[arg-type]


def test_the_search_finds_known_minima() -> None:
    """Rosenbrock's valley, whose least point is (1, 1), and a sum of logarithms."""
    x, y = minimize(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, (-1.2, 1.0))
    assert (x, y) == pytest.approx((1.0, 1.0), abs=1e-4)
    a, b = minimize_positive(lambda p: abs(p[0] - 1e-6) * 1e6 + abs(p[1] - 300) / 300, (1e-3, 1.0))
    assert (a, b) == pytest.approx((1e-6, 300), rel=1e-3)


def test_a_prompt_shares_its_step_and_waits_for_those_planned_before_it() -> None:
    """Planned first tokens were a tenth to a half too early near saturation: of two users, who
    decode for nearly all of the time, one finds a step of the other half done, one more planned,
    and a third that computes its prompt together with what the other decodes."""
    load = replace(LOAD, concurrency=2, output_len=10_000)
    found = steady(model(), load)
    assert found.prompt_s == pytest.approx(0.01)
    assert found.shared_s == pytest.approx(0.01, rel=0.01)
    assert found.ahead_s == pytest.approx(0.015, rel=0.01)
    assert found.ttft_s == pytest.approx(0.035, rel=0.01)
    apart = steady(model(), replace(load, prompts_apart=True))
    assert (apart.shared_s, apart.ahead_s) == (0.0, pytest.approx(0.005, rel=0.01))


@dataclass(frozen=True)
class Groups(Fixed):
    """Four groups in lock step: the busiest one's prompts take the time."""

    layout = Layout(dp=4)

    def device_s(self, shape: StepShape) -> float:
        prompts = shape.num_sequences - shape.decode_sequences
        decoding = self.step_s if shape.decode_sequences else 0.0
        return decoding + self.token_s * shape.prefill_tokens / max(1, min(4, prompts))


@pytest.mark.parametrize("prompt", [500, 2000, 8000])
def test_groups_of_dp_attention_do_as_simulated(prompt: int) -> None:
    """Groups were planned to queue at one server and to compute together what waits there: a third
    too slow where prompts are short, more than twice too fast where they take nearly all time."""
    load = Load(concurrency=128, input_len=prompt, output_len=400)
    costs = cast(CostModel, Groups(0.02, 2e-5))
    done = simulated(load, costs, count=768)
    assert steady(costs, load).requests_per_s == pytest.approx(done.requests_per_s, rel=0.15)


@dataclass(frozen=True)
class Measured:
    """Means of a simulation's middle half: neither the start, all at once, nor the end."""

    ttft_s: float
    tpot_s: float
    requests_per_s: float


def simulated(load: Load, costs: CostModel, *, count: int) -> Measured:
    """The load on the real scheduler, with lengths within a half of its own."""
    rng, words = Random(7), VirtualVocabulary()

    def near(length: float) -> int:
        return rng.randint(int(length / 2), int(length * 3 / 2))

    asked = [(words.draw(rng, near(load.input_len)), near(load.output_len)) for _ in range(count)]
    requests = [LoadRequest(prompt=ids, prompt_len=len(ids), output_len=n) for ids, n in asked]
    stages = costs.layout.pp
    deployed = Deployment(
        capacity=Capacity(20_000, 64, load.chunk_len, 256, max(2, stages)),
        scheduler=SchedulerConfig(max_model_len=30_000, max_queued=1000, run_ahead=stages == 1),
        num_groups=costs.layout.dp,
        num_stages=stages,
        entry_s=costs.calibration.first_token_s,
    )
    workload = Workload(requests=tuple(requests), max_concurrency=load.concurrency)
    records = simulate(workload, deployed, costs).report.records
    ends = sorted(one.end_s for one in records)
    first, last = ends[count // 4], ends[count * 3 // 4]
    middle = [one for one in records if first <= one.end_s < last]
    return Measured(
        fmean(one.times_s[0] - one.sent_s for one in middle),
        fmean((one.end_s - one.times_s[0]) / max(1, one.output_tokens - 1) for one in middle),
        len(middle) / (last - first),
    )


TENSOR, GROUPS, STAGES = Layout(tp=8), Layout(dp=8, ep=8), Layout(tp=4, pp=2)
LOADS = [(1, 2000, 100), (4, 1000, 200), (16, 2000, 200), (64, 500, 100), (64, 2000, 200)]
# Where prompts take over seven tenths of the time, groups and stages wait for the longest prompts,
# of which a plan knows the mean.
HEAVY = [(32, 8000, 200), (128, 4000, 200)]


@pytest.mark.parametrize(
    ("layout", "users", "prompt", "answer"),
    [(TENSOR, *one) for one in (*LOADS, *HEAVY)]
    + [(layout, *one) for layout in (GROUPS, STAGES) for one in LOADS],
)
def test_plans_agree_with_simulations(layout: Layout, users: int, prompt: int, answer: int) -> None:
    """DeepSeek-V3 on 8 H200 by the cost model: the arithmetic of `fathom plan` against the real
    scheduler, from one user to where prompts take most of the time."""
    load = Load(concurrency=users, input_len=prompt, output_len=answer)
    spec, formats = find_model("deepseek-v3").spec, Formats(weights=FP8_BLOCK)
    costs = cost_model(spec, layout, parse_cluster("8xH200"), formats, built_in())
    done, found = simulated(load, costs, count=max(192, 6 * users)), steady(costs, load)
    assert found.ttft_s == pytest.approx(done.ttft_s, rel=0.15)
    assert found.tpot_s == pytest.approx(done.tpot_s, rel=0.15)
    assert found.requests_per_s == pytest.approx(done.requests_per_s, rel=0.15)
