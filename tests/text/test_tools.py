"""Compares ToolCallParser with the calls that were written, however the text is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.text.delta import ToolCallDelta
from fathom.text.markers import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    SEP,
    TOOL_MARKERS,
    Piece,
)
from fathom.text.tools import ToolCallParser

Format = Literal["fenced", "bare"]
FORMATS: list[Format] = ["fenced", "bare"]
NAMES = st.text("abc_.-", min_size=1, max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text("ab`\n", max_size=4), JSON, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)


def pieces_of(*parts: str) -> list[Piece]:
    return [Piece(marker=part) if part in TOOL_MARKERS else Piece(part) for part in parts if part]


def written(format: Format, calls: list[tuple[str, str]]) -> list[Piece]:
    """A block of calls as the model writes it."""
    parts = [CALLS_BEGIN]
    for index, (name, arguments) in enumerate(calls):
        if format == "fenced":
            body = f"{name}\n```json\n{arguments}\n```"
            parts += ["\n" if index else "", CALL_BEGIN, "function", SEP, body, CALL_END]
        else:
            parts += [CALL_BEGIN, name, SEP, arguments, CALL_END]
    return pieces_of(*parts, CALLS_END)


def recut(data: st.DataObject, pieces: list[Piece]) -> list[Piece]:
    """The same stretch of answer, its texts cut at other places."""
    told: list[Piece] = []
    for piece in pieces:
        if piece.marker is not None:
            told.append(piece)
            continue
        places = data.draw(st.sets(st.integers(1, max(1, len(piece.text) - 1)), max_size=6))
        bounds = [0, *sorted(places), len(piece.text)]
        told += [Piece(piece.text[a:b]) for a, b in pairwise(bounds) if a < b]
    return told


def parse(pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and calls as (name, arguments); checks the form of the deltas."""
    parser = ToolCallParser(lambda index: f"id{index}")
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    content = "".join(part for part in parts if isinstance(part, str))
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, str):
            assert part
            continue
        if part.name is not None:
            assert part == ToolCallDelta(len(calls), id=f"id{len(calls)}", name=part.name)
            calls.append((part.name, ""))
        else:
            assert part.id is None
            assert part.index == len(calls) - 1
            assert part.arguments or part.flaw
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    assert parser.num_calls == len(calls)
    return content, calls


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data(), calls=CALLS, before=st.text("ab \n", max_size=6))
@settings(max_examples=100, deadline=None)
def test_calls_come_back_as_written(
    format: Format, data: st.DataObject, calls: list[tuple[str, str]], before: str
) -> None:
    pieces = recut(data, [*pieces_of(before), *written(format, calls)])
    assert parse(pieces) == (before, calls)


SOUP = st.lists(
    st.one_of(
        st.sampled_from(TOOL_MARKERS),
        st.sampled_from(["function", "f", "f\n```json\n", "{}", "\n```", " ", "\n", "`", "x y"]),
    ),
    max_size=12,
)


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data(), parts=SOUP)
@settings(max_examples=200, deadline=None)
def test_any_soup_is_read_the_same_however_it_is_cut(
    format: Format, data: st.DataObject, parts: list[str]
) -> None:
    pieces = pieces_of(*parts)
    assert parse(recut(data, pieces)) == parse(pieces)


@pytest.mark.parametrize("format", FORMATS)
@given(parts=SOUP)
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_but_markup_of_the_format(format: Format, parts: list[str]) -> None:
    """Every word of any soup is in the content, in a name or in arguments, or is markup."""
    content, calls = parse(pieces_of(*parts))
    told = content + "".join(name + arguments for name, arguments in calls)
    for word in ("x", "y", "{}", "f"):
        given_count = "".join(parts).replace("function", "").count(word)
        assert told.replace("function", "").count(word) >= given_count
    if not calls:
        assert content == "".join(parts)


@pytest.mark.parametrize("format", FORMATS)
@given(calls=CALLS, length=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_an_answer_cut_off_gives_a_beginning(
    format: Format, calls: list[tuple[str, str]], length: int
) -> None:
    pieces = [
        Piece(char) if piece.marker is None else piece
        for piece in written(format, calls)
        for char in piece.text or "\0"
    ]
    content, found = parse(pieces[:length])
    for (name, arguments), (whole_name, whole) in zip(found, calls, strict=False):
        assert name == whole_name
        assert (whole + "\n```").startswith(arguments)
    assert not content or content.startswith((CALLS_BEGIN, CALL_BEGIN))


@pytest.mark.parametrize(
    ("format", "parts"),
    [
        ("bare", [SEP, "x"]),
        ("bare", [CALLS_BEGIN, CALLS_END]),
        ("bare", [CALLS_BEGIN, "text", CALLS_END]),
        ("bare", [CALLS_BEGIN, CALL_BEGIN, "two words", SEP, "{}", CALL_END, CALLS_END]),
        ("bare", [CALLS_BEGIN, CALL_BEGIN, "", SEP, "{}", CALL_END]),
        ("bare", [CALL_BEGIN, "n" * 300, SEP, "{}"]),
        ("bare", [CALL_BEGIN, "f", CALL_END]),
        ("fenced", [CALLS_BEGIN, CALL_BEGIN, "function", SEP, "f\nx", CALL_END, CALLS_END]),
        ("fenced", [CALL_BEGIN, "function", SEP, "f\n```js", CALL_END]),
        ("fenced", [CALL_BEGIN, "function", SEP, "n" * 300]),
        ("fenced", [CALL_BEGIN, "function", SEP, "f\n```json"]),
    ],
)
def test_malformed_markup_comes_back_as_content(format: Format, parts: list[str]) -> None:
    assert parse(pieces_of(*parts)) == ("".join(parts), [])


@pytest.mark.parametrize(
    ("format", "parts", "content", "calls"),
    [
        ("bare", [CALL_BEGIN, "f", SEP, "{}", CALL_END], "", [("f", "{}")]),
        ("bare", [CALL_BEGIN, "function", SEP, "{}", CALL_END], "", [("function", "{}")]),
        ("fenced", [CALL_BEGIN, "function", SEP, "f\n{}", CALL_END], "", [("f", "{}")]),
        ("fenced", [CALL_BEGIN, "function", SEP, "f\n```\n{}\n```", CALL_END], "", [("f", "{}")]),
        ("bare", [CALLS_BEGIN, CALL_BEGIN, " f\n", SEP, CALL_END, CALLS_END], "", [("f", "{}")]),
        (
            "bare",
            [CALLS_BEGIN, CALL_BEGIN, "f", SEP, "1", CALL_BEGIN, "g", SEP, "2", CALLS_END, "z"],
            "z",
            [("f", "1"), ("g", "2")],
        ),
        (
            "bare",
            [CALLS_BEGIN, CALL_BEGIN, "f", SEP, f'"{SEP}"', SEP, "x", CALL_END, CALLS_END],
            "",
            [("f", f'"{SEP}"{SEP}x')],
        ),
        (
            "fenced",
            [CALL_BEGIN, "function", SEP, 'f\n```json\n{"a": "```"}', CALL_END],
            "",
            [("f", '{"a": "```"}')],
        ),
        (
            "fenced",
            [CALLS_BEGIN, CALL_BEGIN, "function", SEP, "f\n```json\n{}\n```", CALL_END, " so "],
            " so",
            [("f", "{}")],
        ),
    ],
)
def test_what_models_do(
    format: Format, parts: list[str], content: str, calls: list[tuple[str, str]]
) -> None:
    assert parse(pieces_of(*parts)) == (content, calls)
