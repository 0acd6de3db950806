"""Compares ArgumentsReader with the standard library's JSON, however text is cut and damaged."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.text.arguments import ArgumentsReader, Flaw, RepairLevel
from tests.text.profile import examples

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
LEVELS: list[RepairLevel] = ["none", "lexical", "closing"]
# Every character that the grammar knows, and some that it does not.
SOUP = st.lists(
    st.sampled_from(
        [
            *'{}[]:,"\\/',
            *'""{}',
            "truefalsnTFN",
            "u00e9",
            " ",
            "\n",
            "\t",
            "é",
            "'",
            "0",
            "-1",
            "1.5",
            "e3",
            "true",
            "None",
            "null",
            '"a"',
            '"b":',
            "\\n",
            "\\'",
        ]
    ),
    max_size=24,
).map("".join)


def read(
    text: str, level: RepairLevel = "closing", *, places: set[int] = frozenset(), ended: bool = True
) -> tuple[str, Flaw]:
    reader = ArgumentsReader(level)
    bounds = [0, *sorted(place for place in places if place < len(text)), len(text)]
    told = "".join(reader.feed(text[a:b]) for a, b in pairwise(bounds))
    rest, flaw = reader.finish(is_ended=ended)
    return told + rest, flaw


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda _: (_ for _ in ()).throw(ValueError()))
    except ValueError:
        return False
    return True


PLACES = st.sets(st.integers(1, 60), max_size=8)


@given(value=JSON, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), places=PLACES)
@settings(max_examples=examples(300), deadline=None)
def test_json_passes_as_it_is(
    value: object, indent: int | None, ascii_only: bool, places: set[int]
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    for level in LEVELS:
        assert read(text, level, places=places) == (text, "")


@given(text=SOUP, places=PLACES, ended=st.booleans())
@settings(max_examples=examples(1500), deadline=None)
def test_the_verdict_is_that_of_the_standard_library(
    text: str, places: set[int], ended: bool
) -> None:
    """Unmended text passes as it is, mended text is JSON, and cuts change nothing."""
    for level in LEVELS:
        told, flaw = read(text, level, ended=ended)
        assert read(text, level, places=places, ended=ended) == (told, flaw)
        assert (flaw == "") == is_json(text)
        if flaw != "repaired":
            assert flaw == "" or not is_json(told)
        if flaw == "":
            assert told == text
        if flaw == "repaired":
            assert level != "none"
            assert is_json(told)
            assert json.loads(told) == json.loads(read(told)[0])
    assert read(text, "none")[0] == text


@pytest.mark.parametrize(
    ("text", "mended", "level"),
    [
        ('{"a": 1,}', '{"a": 1}', "lexical"),
        ("[1, 2 , ]", "[1, 2  ]", "lexical"),
        ('{"a": "x\ny\t"}', '{"a": "x\\ny\\t"}', "lexical"),
        ('{"re": "\\d+\\.x"}', '{"re": "\\\\d+\\\\.x"}', "lexical"),
        ('{"a": "it\\\'s"}', '{"a": "it\'s"}', "lexical"),
        ('{"a": "\\u12"}', '{"a": "\\\\u12"}', "lexical"),
        ('{"a": True, "b": [None, False]}', '{"a": true, "b": [null, false]}', "lexical"),
        ('{"a": {"b": [1', '{"a": {"b": [1]}}', "closing"),
        ('{"a": [1,', '{"a": [1]}', "closing"),
        ("{", "{}", "closing"),
    ],
)
def test_what_is_mended_and_from_which_level(text: str, mended: str, level: RepairLevel) -> None:
    for tried in LEVELS:
        expected = LEVELS.index(tried) >= LEVELS.index(level)
        found, flaw = read(text, tried)
        assert flaw == ("repaired" if expected else "invalid")
        assert found == mended if expected else not is_json(found)


@pytest.mark.parametrize(
    "text", ['{"a": "x', '{"a":', '{"a"', "{'a': 1}", '{"a": 1} so', "x", "", '{"a": 01}', "[1}"]
)
def test_what_would_be_a_guess_stays(text: str) -> None:
    assert read(text) == (text, "invalid")


def test_what_a_limit_cut_off_is_not_closed() -> None:
    assert read('{"a": [1', ended=False) == ('{"a": [1', "invalid")
