"""Compares ReasoningSplitter with a split of the whole answer at its markers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.text.markers import CALL_BEGIN, CALLS_BEGIN, END_THINK, THINK, Piece
from fathom.text.reasoning import ReasoningSplitter

TEXT = st.text("ab \n", max_size=12)


def split(splitter: ReasoningSplitter, pieces: list[Piece]) -> tuple[str, str]:
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    by_channel = {"reasoning": "", "answer": ""}
    for channel, piece in parts:
        by_channel[channel] += piece.text or piece.marker or ""
    return by_channel["reasoning"], by_channel["answer"]


def cut(data: st.DataObject, text: str) -> list[Piece]:
    """`text` in pieces of any length."""
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    bounds = [0, *places, len(text)]
    return [Piece(text[a:b]) for a, b in pairwise(bounds) if a < b]


@given(data=st.data(), thought=TEXT, answer=TEXT, starts_inside=st.booleans())
@settings(max_examples=150, deadline=None)
def test_split_is_independent_of_cuts(
    data: st.DataObject, thought: str, answer: str, starts_inside: bool
) -> None:
    pieces = [*cut(data, thought), Piece(marker=END_THINK), *cut(data, answer)]
    if not starts_inside:
        pieces = [Piece(marker=THINK), *pieces]
    splitter = ReasoningSplitter(starts_inside=starts_inside)
    assert split(splitter, pieces) == (thought.strip("\n"), answer.lstrip("\n"))
    assert not splitter.is_inside


@given(data=st.data(), thought=TEXT)
@settings(max_examples=50, deadline=None)
def test_reasoning_that_never_ends_stays_reasoning(data: st.DataObject, thought: str) -> None:
    splitter = ReasoningSplitter(starts_inside=True)
    assert split(splitter, cut(data, thought)) == (thought.lstrip("\n"), "")


@given(data=st.data(), answer=TEXT)
@settings(max_examples=50, deadline=None)
def test_without_markers_all_is_answer(data: st.DataObject, answer: str) -> None:
    splitter = ReasoningSplitter(starts_inside=False)
    assert split(splitter, cut(data, answer)) == ("", answer)


@pytest.mark.parametrize(
    ("starts_inside", "pieces", "expected"),
    [
        (False, [Piece("\na"), Piece(marker=END_THINK), Piece("\nb")], ("", "\na\nb")),
        (True, [Piece(marker=THINK), Piece("\na"), Piece(marker=END_THINK)], ("a", "")),
        (
            False,
            [Piece("\n"), Piece(marker=THINK), Piece("r"), Piece(marker=END_THINK), Piece("\ny")],
            ("r", "\ny"),
        ),
        (
            True,
            [Piece("r\n"), Piece(marker=THINK), Piece(marker=END_THINK), Piece(marker=END_THINK)],
            ("r\n<think>", ""),
        ),
        (True, [Piece("r\n"), Piece(marker=CALLS_BEGIN)], ("r", CALLS_BEGIN)),
        (
            True,
            [Piece(marker=CALLS_BEGIN), Piece(marker=END_THINK), Piece("a")],
            ("", f"{CALLS_BEGIN}a"),
        ),
        (True, [Piece("r\n"), Piece(marker="<other>"), Piece("s")], ("r\n<other>s", "")),
    ],
)
def test_odd_markers(starts_inside: bool, pieces: list[Piece], expected: tuple[str, str]) -> None:
    splitter = ReasoningSplitter(starts_inside=starts_inside, ends_at=frozenset({CALLS_BEGIN}))
    assert split(splitter, pieces) == expected


@given(data=st.data(), starts_inside=st.booleans())
@settings(max_examples=50, deadline=None)
def test_an_answer_about_the_markers_stays_whole(data: st.DataObject, starts_inside: bool) -> None:
    """An answer that named `<think>` went on as reasoning, and a call whose arguments named it
    broke off: a program that parses such answers is written with these tokens."""
    before = [Piece("r"), Piece(marker=END_THINK)] if starts_inside else []
    words = data.draw(st.lists(st.sampled_from([THINK, END_THINK, "\n", "a"]), max_size=8))
    pieces = [Piece(marker=word) if "<" in word else Piece(word) for word in words]
    for opening in (Piece("a"), Piece(marker=CALL_BEGIN)):
        splitter = ReasoningSplitter(
            starts_inside=starts_inside,
            has_ended=not starts_inside,
            ends_at=frozenset({CALL_BEGIN}),
        )
        reasoning, answer = split(splitter, [*before, opening, *pieces])
        assert reasoning == ("r" if starts_inside else "")
        assert answer == (opening.text or CALL_BEGIN) + "".join(words)
