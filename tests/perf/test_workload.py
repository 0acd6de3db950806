"""Compares arrivals with the distributions that they are asked to have, and requests with the
lengths, prefixes and files that they come from."""

from __future__ import annotations

import json
import math
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.perf import datasets
from fathom.perf.datasets import PrefixShape, RandomShape, TurnShape, Vocabulary
from fathom.perf.workload import (
    LoadRequest,
    Workload,
    arrive,
    burst_arrivals,
    gamma_arrivals,
    ramp_arrivals,
)

VOCABULARY = Vocabulary(tuple(range(100, 200)), tuple(f" w{one}" for one in range(100, 200)))
SEEDS = st.integers(0, 2**32)


def kolmogorov_smirnov(samples: list[float], cdf: Any) -> float:
    """The largest distance between the samples' distribution and `cdf`, times the root of n."""
    ordered, count = sorted(samples), len(samples)
    distance = max(
        max((index + 1) / count - cdf(value), cdf(value) - index / count)
        for index, value in enumerate(ordered)
    )
    return distance * math.sqrt(count)


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *times], times, strict=False)]


@pytest.mark.parametrize("seed", range(5))
def test_poisson_arrivals_have_exponential_gaps(seed: int) -> None:
    rate = 7.0
    samples = gaps(gamma_arrivals(4000, rate, Random(seed)))
    # 1.95 is the critical value at one in a thousand.
    assert kolmogorov_smirnov(samples, lambda gap: 1 - math.exp(-rate * gap)) < 1.95


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    """A gamma distribution of shape k has a squared coefficient of variation of 1 / k."""
    samples = gaps(gamma_arrivals(20_000, 5.0, Random(3), burstiness=burstiness))
    mean = sum(samples) / len(samples)
    variance = sum((gap - mean) ** 2 for gap in samples) / len(samples)
    assert mean == pytest.approx(1 / 5.0, rel=1e-6)
    assert variance / mean**2 == pytest.approx(1 / burstiness, rel=0.1)


@given(st.integers(1, 200), st.floats(0.01, 1e4), st.floats(0.05, 50), SEEDS)
def test_arrivals_keep_the_rate(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = gamma_arrivals(count, rate, Random(seed), burstiness=burstiness)
    assert times == sorted(times)
    assert len(times) == count
    assert times[-1] == pytest.approx(count / rate)
    assert times == gamma_arrivals(count, rate, Random(seed), burstiness=burstiness)


def test_no_rate_is_all_at_once_and_infinite_burstiness_a_beat() -> None:
    assert gamma_arrivals(3, math.inf, Random(0)) == [0.0] * 3
    assert gamma_arrivals(4, 2.0, Random(0), burstiness=math.inf) == [0.5, 1.0, 1.5, 2.0]


@given(st.integers(1, 300), st.integers(1, 20), SEEDS)
def test_bursts_come_together(count: int, size: int, seed: int) -> None:
    times = burst_arrivals(count, 10.0, Random(seed), burst_size=size)
    assert len(times) == count
    together = Counter(times)
    assert all(number == size for number in sorted(together.values())[1:])
    assert len(together) == -(-count // size)
    assert times[-1] == pytest.approx(-(-count // size) * size / 10.0)


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_ends_at_its_rate(strategy: Any) -> None:
    times = ramp_arrivals(40_000, 10.0, 1000.0, Random(1), strategy=strategy)
    last = gaps(times)[-2000:]
    shares = [index / 40_000 for index in range(38_001, 40_001)]
    if strategy == "linear":
        wanted = sum(1 / (10 + 990 * share) for share in shares)
    else:
        wanted = sum(1 / (10 * 100**share) for share in shares)
    assert sum(last) == pytest.approx(wanted, rel=0.1)
    with pytest.raises(ConfigError, match="--ramp-up-start-rps"):
        ramp_arrivals(2, 0.0, 1.0, Random(1), strategy="exponential")


@given(
    st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 20), SEEDS
)  # fmt: skip
@settings(max_examples=50)
def test_random_lengths_stay_in_their_range(
    input_len: int, output_len: int, ratio: float, prefix_len: int, seed: int
) -> None:
    shape = RandomShape(
        input_len=input_len, output_len=output_len, range_ratio=ratio, prefix_len=prefix_len
    )
    made = datasets.random_requests(20, shape, VOCABULARY, Random(seed))
    for one in made:
        assert isinstance(one.prompt, tuple)
        assert len(one.prompt) == one.prompt_len
        own = one.prompt_len - prefix_len
        assert math.floor(input_len * (1 - ratio)) <= own <= math.ceil(input_len * (1 + ratio))
        assert 1 <= one.output_len <= math.ceil(output_len * (1 + ratio))
        assert one.output_len >= math.floor(output_len * (1 - ratio))
        assert one.prompt[:prefix_len] == made[0].prompt[:prefix_len]
        assert set(one.prompt) <= set(VOCABULARY.ids)
    again = datasets.random_requests(20, shape, VOCABULARY, Random(seed))
    assert Workload(requests=tuple(made)).digest() == Workload(requests=tuple(again)).digest()


def test_another_seed_is_another_load() -> None:
    digests = {
        Workload(
            requests=tuple(datasets.random_requests(2, RandomShape(), VOCABULARY, Random(seed)))
        ).digest()
        for seed in range(20)
    }
    assert len(digests) == 20


def test_prompts_as_text_say_the_same_tokens() -> None:
    shape = RandomShape(input_len=9)
    ids = datasets.random_requests(3, shape, VOCABULARY, Random(5))
    texts = datasets.random_requests(3, shape, VOCABULARY, Random(5), as_text=True)
    for one, other in zip(ids, texts, strict=True):
        assert other.prompt == "".join(f" w{token}" for token in one.prompt)
        assert one.prompt_len == other.prompt_len


@given(st.integers(1, 60), st.integers(1, 12), SEEDS)
def test_prefixes_are_shared_evenly(count: int, num_prefixes: int, seed: int) -> None:
    shape = PrefixShape(prefix_len=16, suffix_len=16, num_prefixes=num_prefixes)
    made = datasets.prefix_requests(count, shape, VOCABULARY, Random(seed))
    shared = Counter(one.prompt[:16] for one in made)
    assert len(shared) == min(count, num_prefixes)
    assert max(shared.values()) - min(shared.values()) <= 1
    assert len({one.prompt for one in made}) == count
    assert {one.prompt_len for one in made} == {32}


@given(st.integers(1, 20), st.integers(1, 5), SEEDS)
def test_a_turn_says_again_what_was_said(count: int, num_turns: int, seed: int) -> None:
    shape = TurnShape(num_turns=num_turns, input_len=3, output_len=5, think_s=2.0)
    made = datasets.turn_requests(count, shape, VOCABULARY, Random(seed))
    for index, one in enumerate(made):
        turn = index % num_turns
        assert one.prompt_len == len(one.prompt) == 3 * (turn + 1) + 5 * turn
        assert one.after == (None if turn == 0 else index - 1)
        if turn:
            before = made[index - 1].prompt
            assert one.prompt[: len(before)] == before
            assert one.at_s == 2.0


def test_arrivals_leave_follow_ups_alone() -> None:
    shape = TurnShape(num_turns=2, think_s=3.0)
    made = datasets.turn_requests(4, shape, VOCABULARY, Random(0))
    assert [one.at_s for one in arrive(made, [10.0, 20.0])] == [10.0, 3.0, 20.0, 3.0]
    assert not Workload(requests=arrive(made, [0.0, 1.0]), max_concurrency=1).is_closed
    assert Workload(requests=arrive(made, [0.0, 0.0]), max_concurrency=1).is_closed
    with pytest.raises(ConfigError, match="comes before"):
        Workload(requests=(made[1],))


@pytest.mark.parametrize("row", [{}, {"prompt": 3}])
def test_a_bad_row_is_named(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="row 1"):
        datasets.custom_requests([row], len, output_len=3)
    with pytest.raises(ConfigError, match="row 2"):
        datasets.burstgpt_requests(["Model,Request tokens", "GPT-4,1"], VOCABULARY, Random(0))


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 1500)), max_size=20))
def test_sharegpt_leaves_out_what_vllm_leaves_out(lengths: list[tuple[int, int]]) -> None:
    rows = [
        {"conversations": [{"value": "q" * asked}, {"value": "a" * answered}]}
        for asked, answered in lengths
    ]
    made = datasets.sharegpt_requests(rows, len, limit=100)
    wanted = [
        (asked, answered)
        for asked, answered in lengths
        if 4 <= asked <= 1024 and answered >= 4 and asked + answered <= 2048
    ]
    assert [(one.prompt_len, one.output_len) for one in made] == wanted
    assert datasets.sharegpt_requests(rows, len, limit=1) == made[:1]


def test_files_of_texts_and_of_lengths() -> None:
    lines = [{"prompt": "one two"}, {"prompt": "three", "output_tokens": 4}]
    made = datasets.custom_requests(lines, lambda text: len(text.split()), output_len=9)
    assert made == [
        LoadRequest(prompt="one two", prompt_len=2, output_len=9),
        LoadRequest(prompt="three", prompt_len=1, output_len=9),
    ]
    table = [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,ChatGPT,472,18,490,Conversation log",
        "45,GPT-4,12,30,42,API log",
        "46,GPT-4,12,0,12,API log",
    ]
    [one] = datasets.burstgpt_requests(table, VOCABULARY, Random(0))
    assert (one.prompt_len, one.output_len) == (12, 30)


@given(st.integers(1, 9), st.integers(1, 20), st.booleans(), st.booleans(), SEEDS)
def test_a_pick_repeats_only_where_it_may(
    have: int, want: int, shuffle: bool, oversample: bool, seed: int
) -> None:
    made = [LoadRequest(prompt=str(one), prompt_len=1, output_len=1) for one in range(have)]
    picked = datasets.pick(made, want, Random(seed), shuffle=shuffle, oversample=oversample)
    assert len(picked) == (want if oversample else min(have, want))
    first = picked[: min(have, want)]
    assert len({one.prompt for one in first}) == len(first)
    if not shuffle:
        assert first == made[: len(first)]
    assert json.dumps([one.prompt for one in picked])


def test_nothing_to_pick_from_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--dataset-path"):
        datasets.pick([], 1, Random(0), shuffle=True, oversample=True)
