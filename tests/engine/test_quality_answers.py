"""Compares the rules for answers with hand-made ones, and the readers of texts with the tokenizer's
own words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.config import EngineConfig
from fathom.engine.answers import Verdict, judge
from fathom.engine.heldout import Question, documents, embedded_heldout, read_rows
from fathom.engine.text_side import TextSide, load_text
from fathom.errors import ConfigError
from fathom.text.prompt import encode_prompt

RIGHT = Verdict(True, True)
WRONG = Verdict(True, False)
INVALID = Verdict(False, False)
ASK = ({"role": "user", "content": "?"},)
CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    },
}


@pytest.fixture(scope="module")
def text() -> TextSide:
    return load_text(EngineConfig())


def verdict(question: Question, text: TextSide, answer: str) -> Verdict:
    ids = (*text.tokenizer.encode(answer, special=True), text.tokenizer.eos_ids[0])
    return judge(question, text, ids)


def test_exact(text: TextSide) -> None:
    question = Question(messages=ASK, completion="Oslo", check="exact")
    assert verdict(question, text, " Oslo\n") == RIGHT
    assert verdict(question, text, "oslo") == WRONG
    assert verdict(question, text, "") == INVALID


def test_numbers_after_reasoning(text: TextSide) -> None:
    question = Question(
        messages=ASK, completion="7</think>3 + 4 = 7", check="number", thinking=True
    )
    assert verdict(question, text, "what</think>It is 7.") == RIGHT
    assert verdict(question, text, "7</think>It is 8") == WRONG
    assert verdict(question, text, "7</think>none") == INVALID
    assert verdict(question, text, "7 and no end") == INVALID


def test_json(text: TextSide) -> None:
    question = Question(messages=ASK, completion='{"a": 1, "b": [2]}', check="json")
    assert verdict(question, text, '{"b":[2],"a":1}') == RIGHT
    assert verdict(question, text, '{"a": 1}') == WRONG
    assert verdict(question, text, '{"a": 1') == INVALID
    assert verdict(question, text, "[1]") == INVALID


def test_calls(text: TextSide) -> None:
    wanted = CALL.format("add", '{"a": 1, "b": 2}')
    question = Question(messages=ASK, completion=wanted, check="calls", tools=(ADD,))
    assert verdict(question, text, CALL.format("add", '{"b":2,"a":1}')) == RIGHT
    assert verdict(question, text, CALL.format("add", '{"a": 1}')) == WRONG
    for name, arguments in (("sub", '{"a": 1}'), ("add", '{"c": 1}'), ("add", "{}"), ("add", "{")):
        assert verdict(question, text, CALL.format(name, arguments)) == INVALID
    assert verdict(question, text, "add") == INVALID


def test_every_right_answer_of_the_embedded_questions_is_right(text: TextSide) -> None:
    questions = [row for row in read_rows(embedded_heldout()) if isinstance(row, Question)]
    assert len(questions) == 200
    assert {q.check for q in questions} == {"exact", "number", "json", "calls"}
    assert all(judge(q, text, q.answer_ids(text)) == RIGHT for q in questions)


def test_what_of_a_text_is_scored(text: TextSide, tmp_path: Path) -> None:
    plain = tmp_path / "text.txt"
    plain.write_text("word " * 3000)
    whole = documents(read_rows(plain), text, 10**6)
    assert sum(len(one.token_ids) for one in whole) == len(
        encode_prompt(text.tokenizer, "word " * 3000)
    )
    assert max(len(one.token_ids) for one in whole) == 1024
    few = documents(read_rows(plain), text, 1500)
    assert sum(one.num_scored for one in few) == 1500

    question = next(row for row in read_rows(embedded_heldout()) if isinstance(row, Question))
    (document,) = documents([question], text, 10**6)
    scored = document.token_ids[document.first_scored :]
    assert scored == question.answer_ids(text)
    assert scored[-1] in text.tokenizer.eos_ids


@pytest.mark.parametrize(
    "line",
    ['{"text": ""}', '{"texts": "a"}', "[]", "{", json.dumps({"messages": [], "check": "x"})],
)
def test_lines_that_are_wrong_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2"):
        read_rows(path)


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n")
    for wrong in (path, tmp_path / "none.txt"):
        with pytest.raises(ConfigError, match="--text"):
            read_rows(wrong)
