"""Compares the requests of traces with the rows that they come from, and errors with the place at
which the text was broken."""

from __future__ import annotations

import json

import pytest

from fathom.errors import ConfigError
from fathom.perf.datasets import Vocabulary
from fathom.perf.trace import TraceShape, trace_requests
from fathom.perf.virtual import Runs, VirtualVocabulary

VOCABULARY = Vocabulary(tuple(range(100, 200)), tuple(f" w{one}" for one in range(100, 200)))
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,4808,10\n"


def mooncake(*rows: dict[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_a_trace_has_its_times_lengths_and_shared_blocks() -> None:
    text = mooncake(
        {"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 0, "input_length": 1100, "output_length": 9, "hash_ids": [1, 3, 4]},
        {"timestamp": 500, "input_length": 20, "output_length": 1},
    )
    made = trace_requests(text, TraceShape(), VOCABULARY, 7)
    assert [one.at_s for one in made] == [0.0, 0.5, 2.0]
    assert [one.prompt_len for one in made] == [len(one.prompt) for one in made] == [1100, 20, 700]
    assert [one.output_len for one in made] == [9, 1, 5]
    first, _, third = (one.prompt for one in made)
    assert first[:512] == third[:512]
    assert first[512:700] != third[512:700]
    assert made == trace_requests(text, TraceShape(), VOCABULARY, 7)
    slow = trace_requests(text, TraceShape(0.01, 100), VOCABULARY, 7)
    assert [one.at_s for one in slow] == pytest.approx([0.0, 5.0, 20.0])
    assert slow[0].prompt[:100] == slow[2].prompt[:100]
    assert slow[0].prompt[100:200] != slow[2].prompt[100:200]


def test_virtual_tokens_share_what_tokens_share() -> None:
    text = mooncake(
        {"arrival": 0, "input": 1100, "output": 9, "prefix_ids": ["a", 3, 4]},
        {"arrival": 2.5, "input": 700, "output": 5, "prefix_ids": ["a", 2]},
    )
    first, second = trace_requests(text, TraceShape(), VirtualVocabulary(), 7)
    assert (first.at_s, second.at_s) == (0.0, 2.5)
    one, other = (made.prompt.ids() for made in (first, second) if isinstance(made.prompt, Runs))
    assert (len(one), len(other)) == (1100, 700)
    assert one[:512] == other[:512]
    assert not set(one[512:]) & set(other[512:])


def test_azure_counts_from_its_first_request() -> None:
    text = AZURE + "2023-11-16 18:15:50.9951690,3180,8\n2024-05-10 00:00:00.009930+00:00,110,27\n"
    made = trace_requests(text, TraceShape(), VirtualVocabulary(), 0)
    assert [(one.prompt_len, one.output_len) for one in made] == [(4808, 10), (3180, 8), (110, 27)]
    assert made[0].at_s == 0.0
    assert made[1].at_s == pytest.approx(4.314579, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        (mooncake({"timestamp": 1, "input_length": 2, "output_length": 3}) + "\n{oops", 2, 2),
        ('\n\n{"arrival": 1, "input": 5, "output": }', 3, 38),
        ('{"arrival": 1, "input": "5", "output": 2}', 1, 25),
        ('{"arrival": 1, "input": 5, "output": 0}', 1, 38),
        ('{"arrival": 1, "input": 5, "output": true}', 1, 38),
        ('{"arrival": 1, "input": 99999999999, "output": 1}', 1, 25),
        ('{"arrival": NaN, "input": 5, "output": 1}', 1, 13),
        ('{"arrival": -1, "input": 5, "output": 1}', 1, 13),
        ('{"arrival": 1, "input": 5, "output": 1, "prefix_ids": 3}', 1, 55),
        ('{"arrival": 1, "input": 5}', 1, 1),
        ('{"time": 1}', 1, 1),
        ("[1, 2]", 1, 1),
        ("TIMESTAMP,ContextTokens\n", 1, 1),
        (AZURE + "2023-11-16 18:15:50,12\n", 3, 1),
        (AZURE + "yesterday,12,3\n", 3, 1),
        (AZURE + "2023-11-16 18:15:50,12.5,3\n", 3, 21),
        (AZURE + "2023-11-16 18:15:50,12,0\n", 3, 24),
    ],
)
def test_a_broken_line_is_named_with_its_column(text: str, line: int, column: int) -> None:
    with pytest.raises(ConfigError, match=rf"trace\.x: line {line}, column {column};"):
        trace_requests(text, TraceShape(), VirtualVocabulary(), 0, name="trace.x")


@pytest.mark.parametrize("text", ["", "\n \n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_a_trace_without_requests_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="no request"):
        trace_requests(text, TraceShape(), VirtualVocabulary(), 0)
