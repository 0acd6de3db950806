"""The long run of a closed loop against queueing theory, and the search against known minima."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration
from fathom.perf.cost import CostModel
from fathom.perf.minimize import minimize, minimize_positive
from fathom.perf.shape import StepShape
from fathom.perf.simulate import simulate
from fathom.perf.simulation import Deployment
from fathom.perf.steady import Load, steady
from fathom.perf.virtual import VirtualVocabulary
from fathom.perf.workload import LoadRequest, Workload
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
    # Its prompt, and the step that another user's would have been in.
    assert found.ttft_s == pytest.approx(0.01 + 0.005)
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
    rng, words = Random(7), VirtualVocabulary()

    def near(length: int) -> int:
        return rng.randint(length // 2, length * 3 // 2)

    asked = [(words.draw(rng, near(prompt)), near(400)) for _ in range(768)]
    requests = [LoadRequest(prompt=ids, prompt_len=len(ids), output_len=n) for ids, n in asked]
    deployed = Deployment(
        capacity=Capacity(20_000, 64, 8192, 256, 2),
        scheduler=SchedulerConfig(max_model_len=20_000, max_queued=1000),
        num_groups=4,
        entry_s=0.0,
    )
    done = simulate(Workload(requests=tuple(requests), max_concurrency=128), deployed, costs)
    ends = sorted(one.end_s for one in done.report.records)
    rate = 384 / (ends[576] - ends[192])  # neither the start, all at once, nor the end
    assert steady(costs, load).requests_per_s == pytest.approx(rate, rel=0.15)
