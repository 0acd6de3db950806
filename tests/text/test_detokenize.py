"""Compares incremental text with the whole decode, and stop strings with a search of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import RequestError
from fathom.text.detokenize import Detokenizer
from fathom.text.markers import Piece
from fathom.text.tokenizer import Tokenizer

MODEST = settings(max_examples=100, deadline=None)


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def run(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    """The text of each push, then of finish."""
    return [*(text_of(detokenizer.push(i)) for i in ids), text_of(detokenizer.finish())]


@given(data=st.data(), skip=st.booleans())
@MODEST
def test_pieces_join_to_the_whole_decode(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    """Any ids, bytes of no character among them."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    pieces = run(Detokenizer(tokenizer, skip_special_tokens=skip), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip)


@given(text=st.text(max_size=40))
@MODEST
def test_no_half_character_is_told(tokenizer: Tokenizer, text: str) -> None:
    ids = list(tokenizer.encode(text))
    told = ""
    detokenizer = Detokenizer(tokenizer)
    for token_id in ids:
        told += text_of(detokenizer.push(token_id))
        assert text.startswith(told)
    assert told == text
    assert detokenizer.finish() == []


@given(
    text=st.text("ab❄", max_size=30),
    stop=st.lists(st.text("ab❄", min_size=1, max_size=4)),
    data=st.data(),
)
@MODEST
def test_stop_strings_equal_a_search_after_every_token(
    tokenizer: Tokenizer, text: str, stop: list[str], data: st.DataObject
) -> None:
    """The stop string that is complete first ends the text; the token completing it counts."""
    includes = data.draw(st.booleans())
    ids = list(tokenizer.encode(text))
    detokenizer = Detokenizer(tokenizer, stop=stop, include_stop_str_in_output=includes)
    told = "".join(run(detokenizer, ids))
    ends = {s: text.find(s) + len(s) for s in stop if s in text}
    if not ends:
        assert (told, detokenizer.stopped_by, detokenizer.num_tokens) == (text, None, len(ids))
        return
    found = min(ends, key=lambda s: (ends[s], -len(s)))
    assert detokenizer.stopped_by == found
    assert told == text[: ends[found] - (0 if includes else len(found))]
    needed = next(n for n in range(len(ids) + 1) if found in tokenizer.decode(ids[:n]))
    assert detokenizer.num_tokens == needed


def test_text_that_may_begin_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, stop=["\n\nUser"])
    told = [text_of(detokenizer.push(i)) for i in tokenizer.encode("x\n\nUs")]
    assert "".join(told) == "x"
    assert text_of(detokenizer.finish()) == "\n\nUs"


def test_nothing_comes_after_a_stop_string(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, stop=["."])
    ids = list(tokenizer.encode("a. b. c"))
    assert "".join(run(detokenizer, ids)) == "a"
    assert detokenizer.num_tokens < len(ids)
    assert detokenizer.push(ids[0]) == []


@given(text=st.text("ab", max_size=20), min_tokens=st.integers(0, 25))
@MODEST
def test_min_tokens_are_not_searched(tokenizer: Tokenizer, text: str, min_tokens: int) -> None:
    ids = list(tokenizer.encode(text))
    free = tokenizer.decode(ids[:min_tokens])
    detokenizer = Detokenizer(tokenizer, stop=["ab"], min_tokens=min_tokens)
    told = "".join(run(detokenizer, ids))
    rest = text[len(free) :]
    assert told == free + (rest[: rest.find("ab")] if "ab" in rest else rest)


def test_markers_part_text(tokenizer: Tokenizer) -> None:
    """A marker ends an unfinished character and whatever might have been a stop string."""
    think = tokenizer.special_ids["<think>"]
    snow = next(i for i in tokenizer.encode("☃") if len(tokenizer.token_bytes(i)) < 3)
    detokenizer = Detokenizer(tokenizer, stop=["ab"], markers={think: "<think>"})
    ids = [*tokenizer.encode("a"), think, *tokenizer.encode("b"), snow, think]
    pieces = [piece for i in ids for piece in detokenizer.push(i)]
    marker = Piece(marker="<think>")
    assert pieces == [Piece("a"), marker, Piece("b"), Piece("�"), marker]


@pytest.mark.parametrize("min_tokens", [0, 2])
def test_a_stop_string_may_be_a_marker(tokenizer: Tokenizer, min_tokens: int) -> None:
    """`"stop": ["</think>"]` was accepted and never found: a marker is no text to be searched."""
    end = tokenizer.special_ids["</think>"]
    detokenizer = Detokenizer(
        tokenizer, stop=["</think>"], min_tokens=min_tokens, markers={end: "</think>"}
    )
    ids = [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
    pieces = [piece for i in ids for piece in detokenizer.push(i)]
    assert pieces[:2] == [Piece("a"), Piece(marker="</think>")]
    assert (detokenizer.stopped_by, len(pieces)) == ((None, 3) if min_tokens else ("</think>", 2))


def test_silent_tokens_count_and_say_nothing(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    assert detokenizer.push(tokenizer.eos_ids[0], is_silent=True) == []
    assert detokenizer.num_tokens == 1
    assert text_of(detokenizer.push(tokenizer.eos_ids[0])) == "<｜end▁of▁sentence｜>"


def test_unknown_ids_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="outside the vocabulary"):
        Detokenizer(tokenizer).push(tokenizer.vocab_size)
