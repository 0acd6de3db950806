"""Compares what SamplingParams accepts with the documented ranges, at and just past each end."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.sampling_checks import MAX_CHOICES, MAX_LOGPROBS, MAX_STOP_STRINGS
from fathom.core.types import SamplingParams
from fathom.errors import RequestError

HUGE = 10**5000  # Python does not write out whole numbers of so many digits
# Field, values that are right, values that are not.
RANGES: list[tuple[str, list[Any], list[Any]]] = [
    ("n", [1, MAX_CHOICES], [0, MAX_CHOICES + 1, 10**6, 1.0, True, "1", None]),
    ("temperature", [0, 0.0, 1, 100.0], [-0.1, math.nan, math.inf, "1", True, None]),
    ("top_p", [1e-9, 1, 1.0], [0, 1.01, -1, math.nan]),
    ("top_k", [-1, 0, 1, 10**6], [-2, 1.5, True, None]),
    ("min_p", [0, 1], [-0.01, 1.01]),
    ("presence_penalty", [-2, 2], [-2.01, 2.01]),
    ("frequency_penalty", [-2, 2], [-2.01, 2.01]),
    ("repetition_penalty", [0.01, 10], [0, -1, math.inf]),
    ("seed", [None, 0, -(2**63), 2**63 - 1], [2**63, -(2**63) - 1, HUGE, 1.5, "1"]),
    ("max_tokens", [None, 1, 10**6], [0, -1, 1.5]),
    ("logprobs", [None, 0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1, True]),
    ("prompt_logprobs", [None, 0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1]),
    ("stop", [None, "x", ["a", "b"], ("a",), []], ["", [""], [1], 5, ["x"] * 999, "x" * 2000]),
    ("stop_token_ids", [None, [], [0, 5]], [[-1], ["1"], 5, [True], [0] * 2000]),
    (
        "logit_bias",
        [None, {}, {5: -100, "6": 100}],
        [{5: 101}, {-1: 1}, {"9" * 5000: 1}, {"x": 1}, {HUGE: 1}, [1], {5: "1"}],
    ),
    ("allowed_token_ids", [None, [0, 5]], [[], [-1], ["1"], 5, [0] * (2**18 + 1)]),
    ("bad_token_ids", [None, [], [[1], [2, 3]]], [[[]], [1], [[-1]], [[0] * 65], [[0]] * 513]),
    ("ignore_eos", [True, False], [1, None, "true"]),
    ("include_stop_str_in_output", [True], [0]),
    ("skip_special_tokens", [False], ["no"]),
]
RIGHT = [(name, value) for name, values, _ in RANGES for value in values]
WRONG = [(name, value) for name, _, values in RANGES for value in values]


def repr_or_size(value: Any) -> str:
    return "huge" if value == HUGE else type(value).__name__


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_values_in_range_are_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr_or_size)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in str(caught.value)
    assert caught.value.wanted
    assert len(str(caught.value)) < 400


def test_what_callers_write_becomes_one_form() -> None:
    loose = SamplingParams(
        stop="a",  # type: ignore[arg-type]
        stop_token_ids=[1, 2],  # type: ignore[arg-type]
        top_k=-1,
        temperature=1,
        logit_bias={"7": 1},  # type: ignore[dict-item]
    )
    strict = SamplingParams(
        stop=("a",), stop_token_ids=(1, 2), top_k=0, temperature=1.0, logit_bias={7: 1.0}
    )
    assert loose == strict
    assert isinstance(loose.temperature, float)


def test_min_tokens_is_bounded_by_max_tokens() -> None:
    SamplingParams(min_tokens=5, max_tokens=5)
    SamplingParams(min_tokens=5, max_tokens=None)
    with pytest.raises(RequestError, match="at most max_tokens, 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from([name for name, _, _ in RANGES]), value=ANYTHING)
def test_no_value_does_anything_but_pass_or_be_refused(name: str, value: Any) -> None:
    with contextlib.suppress(RequestError):
        made = SamplingParams(**{name: value})
        assert SamplingParams(**{name: getattr(made, name)}) == made


def test_too_many_stop_strings_are_counted_not_shown() -> None:
    with pytest.raises(RequestError, match=f"at most {MAX_STOP_STRINGS}"):
        SamplingParams(stop=("x",) * (MAX_STOP_STRINGS + 1))
