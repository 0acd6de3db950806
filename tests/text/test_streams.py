"""Holds every answer that a model may write, damaged ones too, against what must hold of all.

Quick by default; with FATHOM_TEST_EXAMPLES=100000, and pytest's `--timeout 0`, each property sees
that many streams.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.types import SamplingParams, TokenEvent
from fathom.text.channels import OutputFormat
from fathom.text.markers import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    REASONING_MARKERS,
    SEP,
    TOOL_MARKERS,
)
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer
from tests.text.profile import examples

MARKERS = (*REASONING_MARKERS, *TOOL_MARKERS)
FORM = OutputFormat(splits_reasoning=True, starts_inside=True, tools="bare", repairs="none")
Parts = list[str]
Form = Literal["fenced", "bare"]
WORDS = st.sampled_from(
    [
        "a",
        "so ",
        "é",
        "世界",
        "🙂",
        "\n",
        "\n\n",
        " ",
        "1",
        "`",
        "<",
        "<th",
        "</thin",
        "<｜tool",
        "x y",
    ]
)
PROSE = st.lists(WORDS, max_size=5).map("".join)
NAMES = st.text("abc_.-", min_size=1, max_size=8)
VALUES = st.dictionaries(PROSE, st.one_of(PROSE, st.integers(), st.none()), max_size=3)


def call(form: Form, name: str, arguments: str) -> Parts:
    if form == "bare":
        return [CALL_BEGIN, name, SEP, arguments, CALL_END]
    return [CALL_BEGIN, "function", SEP, f"{name}\n```json\n{arguments}\n```", CALL_END]


@dataclass(frozen=True)
class Answer:
    """What a well-formed answer says."""

    reasoning: str
    text: str
    calls: list[tuple[str, Any]]
    parts: Parts


@st.composite
def well_formed(draw: st.DrawFn) -> Answer:
    """Reasoning that the prompt opened, text, and a block of calls or none."""
    form = draw(st.sampled_from(["fenced", "bare"]))
    reasoning, text = draw(PROSE).strip("\n"), draw(PROSE).lstrip("\n")
    calls = draw(st.lists(st.tuples(NAMES, VALUES), max_size=3))
    parts = ["\n", reasoning, "\n", END_THINK, "\n\n", text]
    if calls:
        parts.append(CALLS_BEGIN)
        for index, (name, value) in enumerate(calls):
            parts += ["\n" if index else "", *call(form, name, json.dumps(value))]
        parts.append(CALLS_END)
    return Answer(reasoning, text, calls, parts)


FRAGMENTS = st.one_of(
    st.sampled_from(MARKERS).map(lambda marker: [marker]),
    PROSE.map(lambda text: [text]),
    st.builds(call, st.sampled_from(["fenced", "bare"]), NAMES, VALUES.map(json.dumps)),
    st.sampled_from([["function"], ["f\n"], ["```json\n"], ["\n```"], ["{"], ["}"], ['{"a": 1,}']]),
)


@st.composite
def damaged(draw: st.DrawFn) -> Parts:
    """A well-formed answer after accidents, or nothing but fragments: nested, interleaved."""
    if draw(st.booleans()):
        return [part for fragment in draw(st.lists(FRAGMENTS, max_size=10)) for part in fragment]
    parts = draw(well_formed()).parts
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        match draw(st.sampled_from(["drop", "twice", "insert", "cut", "split"])):
            case "drop" if len(parts) > 1:
                del parts[at]
            case "twice":
                parts.insert(at, parts[at])
            case "insert":
                parts[at:at] = draw(FRAGMENTS)
            case "cut":
                parts = parts[: at + 1]
            case _ if parts[at] not in MARKERS:  # a marker in the middle of a text
                middle = len(parts[at]) // 2
                parts[at : at + 1] = [
                    parts[at][:middle],
                    draw(st.sampled_from(MARKERS)),
                    parts[at][middle:],
                ]
    return parts


def ids_of(tokenizer: Tokenizer, parts: Parts, *, by_bytes: bool = False) -> list[int]:
    """Markers by id where the tokenizer has them; text as it encodes it, or byte by byte."""
    ids: list[int] = []
    for part in parts:
        if part in tokenizer.special_ids:
            ids.append(tokenizer.special_ids[part])
        elif by_bytes:
            ids += [bytes_of(tokenizer)[byte] for byte in part.encode()]
        else:
            ids += tokenizer.encode(part)
    return ids


@functools.cache
def bytes_of(tokenizer: Tokenizer) -> dict[int, int]:
    """The token of each single byte."""
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return {byte: table[bytes((byte,))] for byte in range(256)}


@dataclass
class Told:
    """What came out: by channel, and in order (one delta does not say which channel came first)."""

    reasoning: str
    text: str
    calls: list[list[str]]
    deltas: list[tuple[str, str]]
    is_stray: bool
    flaws: list[str]

    def orders(self) -> Iterator[str]:
        """Every order in which it can have been written."""
        choices = [(a + b, b + a) if a and b else (a + b,) for a, b in self.deltas]
        return map("".join, itertools.product(*choices))


def read(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int] = (), form: OutputFormat = FORM
) -> Told:
    """Push `ids` in events of the given sizes, then one by one."""
    stream = OutputStream(tokenizer, SamplingParams(skip_special_tokens=False), format=form)
    told = Told("", "", [], [], False, [])
    at, left = 0, list(sizes)
    while True:
        size = left.pop(0) if left else 1
        event_ids, at = tuple(ids[at : at + size]), at + size
        delta = stream.push(
            TokenEvent("r", event_ids, finish_reason="length" if at >= len(ids) else None)
        )
        assert delta is not None
        told.reasoning += delta.reasoning
        told.text += delta.text
        calls = ""
        for piece in delta.tool_calls:
            if piece.name is not None:
                told.calls.append([piece.name, ""])
            told.calls[piece.index][1] += piece.arguments
            told.flaws += [piece.flaw] if piece.flaw else []
            calls += (piece.name or "") + piece.arguments
        told.deltas.append((delta.reasoning, delta.text + calls))
        told.is_stray |= delta.has_stray_markup
        if at >= len(ids):
            return told


def bare_of_markup(text: str) -> str:
    """`text` less all that a format adds: markers, fences, white space, arguments of no call."""
    text = re.sub("|".join(map(re.escape, MARKERS)), "", text)
    return re.sub(r"function|```json|[`\s]|\{\}", "", text)


SIZES = st.lists(st.integers(1, 7), max_size=12)
TOKENIZERS = pytest.mark.parametrize("spells", [False, True], ids=["by id", "as text"])


def chosen(tokenizer: Tokenizer, bare_tokenizer: Tokenizer, spells: bool) -> Tokenizer:
    return bare_tokenizer if spells else tokenizer


@TOKENIZERS
@given(answer=well_formed(), sizes=SIZES, by_bytes=st.booleans())
@settings(max_examples=examples(250), deadline=None)
def test_a_well_formed_answer_comes_apart(
    tokenizer: Tokenizer,
    bare_tokenizer: Tokenizer,
    spells: bool,
    answer: Answer,
    sizes: list[int],
    by_bytes: bool,
) -> None:
    """Reasoning, text and calls as they were meant, and no markup among them."""
    used = chosen(tokenizer, bare_tokenizer, spells)
    told = read(used, ids_of(used, answer.parts, by_bytes=by_bytes), sizes)
    assert (told.reasoning, told.text) == (answer.reasoning, answer.text)
    assert [(name, json.loads(text)) for name, text in told.calls] == answer.calls
    assert not told.is_stray
    assert not told.flaws


@TOKENIZERS
@given(parts=damaged(), sizes=SIZES, by_bytes=st.booleans(), repairs=st.booleans())
@settings(max_examples=examples(500), deadline=None)
def test_cuts_change_nothing(
    tokenizer: Tokenizer,
    bare_tokenizer: Tokenizer,
    spells: bool,
    parts: Parts,
    sizes: list[int],
    by_bytes: bool,
    repairs: bool,
) -> None:
    used = chosen(tokenizer, bare_tokenizer, spells)
    form = replace(FORM, repairs="closing") if repairs else FORM
    one = read(used, ids_of(used, parts), form=form)
    other = read(used, ids_of(used, parts, by_bytes=by_bytes), sizes, form)
    for part in ("reasoning", "text", "calls", "is_stray", "flaws"):
        assert getattr(one, part) == getattr(other, part)


@TOKENIZERS
@given(parts=damaged(), inside=st.booleans())
@settings(max_examples=examples(500), deadline=None)
def test_nothing_is_lost_and_no_markup_leaks_unseen(
    tokenizer: Tokenizer, bare_tokenizer: Tokenizer, spells: bool, parts: Parts, inside: bool
) -> None:
    """What is told gives back what was written, in order, less the marks of the format."""
    used = chosen(tokenizer, bare_tokenizer, spells)
    told = read(
        used, ids_of(used, parts), form=replace(FORM, starts_inside=inside, starts_after=not inside)
    )
    assert bare_of_markup("".join(parts)) in map(bare_of_markup, told.orders())
    leaks = any(marker in next(told.orders()) for marker in MARKERS)
    assert leaks == told.is_stray


@given(drawn=st.lists(st.integers(0, 2**16), max_size=40), sizes=SIZES)
@settings(max_examples=examples(300), deadline=None)
def test_any_tokens_at_all_are_read(
    tokenizer: Tokenizer, drawn: list[int], sizes: list[int]
) -> None:
    """Broken characters too: bytes that are no UTF-8 between two markers become U+FFFD."""
    ids = [number % tokenizer.vocab_size for number in drawn]
    one, other = read(tokenizer, ids), read(tokenizer, ids, sizes)
    assert (one.reasoning, one.text, one.calls) == (other.reasoning, other.text, other.calls)
    markers = {tokenizer.special_ids[marker] for marker in MARKERS}
    stretches = [-1, *(i for i, token in enumerate(ids) if token in markers), len(ids)]
    written = "".join(tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise(stretches))
    assert bare_of_markup(written) in map(bare_of_markup, one.orders())


IN_CALL = [END_THINK, CALLS_BEGIN, CALL_BEGIN, "f", SEP]
IN_FENCE = [END_THINK, CALLS_BEGIN, CALL_BEGIN, "function", SEP, "f\n```json\n"]
SHAPES: dict[str, tuple[Parts, str]] = {
    "prose": ([END_THINK], "words and more "),
    "newlines in reasoning": ([], "\n"),
    "white space in arguments": ([*IN_CALL, "{"], " \n"),
    "backticks": ([*IN_FENCE, "{"], "`"),
    "open brackets": (IN_CALL, "[{"),
    "white space between calls": ([*IN_CALL, "{}", CALL_END], " \n"),
    "half markers": ([END_THINK], "<｜tool▁calls▁begi"),
    "a name without end": ([END_THINK, CALL_BEGIN], "n"),
    "a string without end": ([*IN_CALL, '{"'], "a\\"),
    "digits without end": (IN_CALL, "1"),
    "calls": ([END_THINK, CALLS_BEGIN], "".join((CALL_BEGIN, "f", SEP, "{}", CALL_END))),
}


@TOKENIZERS
@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear(
    tokenizer: Tokenizer, bare_tokenizer: Tokenizer, spells: bool, shape: str
) -> None:
    """Eight times the length in at most twenty times the time; a square would take sixty-four."""
    used = chosen(tokenizer, bare_tokenizer, spells)
    start, repeated = SHAPES[shape]
    before = ids_of(used, start)
    unit = list(used.encode(repeated, special=True))

    def seconds(num_tokens: int) -> float:
        ids = before + unit * (num_tokens // len(unit))
        stream = OutputStream(used, SamplingParams(), format=replace(FORM, repairs="closing"))
        began = time.process_time()
        for token_id in ids:
            stream.push(TokenEvent("r", (token_id,)))
        stream.push(TokenEvent("r", (), finish_reason="length"))
        return time.process_time() - began

    short = min(seconds(2_000) for _ in range(3))
    assert min(seconds(16_000) for _ in range(2)) < 20 * short
