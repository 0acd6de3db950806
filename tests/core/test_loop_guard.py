"""Compares LoopGuard with a search of every period, and has it let be what repeats by right."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.loop_guard import LoopGuard, LoopLimits
from fathom.core.policy import order_key
from fathom.core.sequence import Sequence
from fathom.core.types import Request, SamplingParams

SMALL = LoopLimits(num_tokens=48, num_repeats=4, max_period=64)


def fires_at(tokens: list[int], limits: LoopLimits | None = None) -> int | None:
    """How many tokens of the answer had come when the guard fired."""
    guard, known = LoopGuard(limits or LoopLimits()), list[int]()
    for index, token in enumerate(tokens):
        known.append(token)
        if guard.is_loop(known, 0):
            return index + 1
    return None


def loops_at(tokens: list[int], limits: LoopLimits) -> int | None:
    """The same by trying every period at every place."""
    runs = [0] * (limits.max_period + 1)
    for index, token in enumerate(tokens):
        for period in range(1, min(index, limits.max_period) + 1):
            runs[period] = runs[period] + 1 if tokens[index - period] == token else 0
            if runs[period] + period >= max(limits.num_tokens, limits.num_repeats * period):
                return index + 1
    return None


@given(
    before=st.lists(st.integers(0, 3), max_size=80),
    unit=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    repeats=st.integers(1, 60),
)
@settings(max_examples=300, deadline=None)
def test_a_loop_is_found_soon_after_it_is_one(
    before: list[int], unit: list[int], repeats: int
) -> None:
    """Never earlier than the search finds one, and at most two stretches and an anchor later."""
    tokens = before + unit * repeats
    found, true = fires_at(tokens, SMALL), loops_at(tokens, SMALL)
    if found is not None:
        assert true is not None
        assert found >= true
    is_varied = len({tuple(unit[i:] + unit[:i]) for i in range(len(unit))}) == len(unit)
    if true is not None and is_varied and len(set(unit)) > len(unit) // 2:
        slack = 2 * len(unit) + 2 * SMALL.max_period + 16
        assert found is None or found <= true + slack
        assert found is not None or len(tokens) <= true + slack


@given(tokens=st.lists(st.integers(0, 2), max_size=400))
@settings(max_examples=200, deadline=None)
def test_chance_repetition_is_judged_as_by_the_search(tokens: list[int]) -> None:
    if fires_at(tokens, SMALL) is not None:
        assert loops_at(tokens, SMALL) is not None


@pytest.mark.parametrize("period", [1, 2, 7, 31, 100, 120])
def test_the_defaults_end_a_loop_of_a_sentence_within_a_thousand_tokens(period: int) -> None:
    rng = random.Random(period)
    prose = [rng.randrange(100_000) for _ in range(3_000)]
    unit = [rng.randrange(100_000) for _ in range(period)]
    found = fires_at(prose + unit * (4_000 // period))
    assert found is not None
    assert len(prose) + 1024 <= found <= len(prose) + 1024 + 2 * period + 32


def words(text: str) -> list[int]:
    """A tokenizer of words, marks and single spaces; far coarser than the model's."""
    table: dict[str, int] = {}
    out, word = [], ""
    for char in text + "\0":
        if char.isalnum():
            word += char
            continue
        out += [table.setdefault(part, len(table)) for part in (word, char) if part]
        word = ""
    return out


def _table() -> str:
    rows = [f"| {i} | item {i % 7} | {i * i % 97} | yes | 0.00 |" for i in range(400)]
    return "\n".join(["| n | name | value | ok | rest |", "|---|---|---|---|---|", *rows])


def _code() -> str:
    fields = [f'    self.field_{i} = config.get("field_{i}", None)' for i in range(300)]
    cases = [f"        case {i}:\n            return handle_{i}(value)" for i in range(200)]
    return "\n".join(["class Config:", *fields, *cases])


LEGITIMATE = {
    "a table": _table(),
    "code": _code(),
    "a numbered list": "\n".join(f"{i}. The quick brown fox jumps." for i in range(1, 500)),
    "rows of zeros": "\n".join(", ".join(["0"] * 16) for _ in range(16)),
    "an array": "[" + ", ".join(["0"] * 300) + "]",
    "a matrix": "\n".join(" ".join("1" if i == j else "0" for j in range(24)) for i in range(24)),
    "JSON": json.dumps([{"id": i, "tags": ["a", "b"], "ok": True} for i in range(300)], indent=2),
    "a line that was asked for fifty times": "I must not talk in class.\n" * 50,
    "a rule": "=" * 800,
    "a refrain": "\n".join(f"Verse {i} of many words\nLa la la la la\n" * 2 for i in range(60)),
    "counting": " ".join(map(str, range(3000))),
    "a chorus of four": ("Row, row, row your boat, gently down the stream. " * 4 + "\n") * 5,
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_text_that_repeats_much_is_let_be(name: str) -> None:
    tokens = words(LEGITIMATE[name])
    assert len(tokens) > 300
    assert fires_at(tokens) is None


def sequence(**asked: object) -> Sequence:
    request = Request(
        id="r",
        prompt_ids=(1, 2) * 2_000,  # a prompt that loops is nobody's fault
        sampling=SamplingParams(max_tokens=None, **asked),  # type: ignore[arg-type]
        seed=0,
    )
    return Sequence(
        0,
        request,
        order_key(request, 0),
        limit=20_000,
        runs_ahead=True,
        constraint=None,
        loops=LoopLimits(),
    )


def test_a_sequence_ends_with_its_reason_and_not_before_its_least_length() -> None:
    assert sequence().extend([1, 2] * 100) is None
    looping = sequence()
    assert looping.extend([1, 2] * 2_000) == "repetition"
    assert 1024 <= looping.num_outputs < 1100
    patient = sequence(min_tokens=3_000)
    assert patient.extend([1, 2] * 2_000) == "repetition"
    assert patient.num_outputs == 3_000


@pytest.mark.parametrize("asked", [{"repetition_detection": False}, {"ignore_eos": True}])
def test_it_can_be_turned_off(asked: dict[str, bool]) -> None:
    assert sequence(**asked).extend([1, 2] * 2_000) is None
