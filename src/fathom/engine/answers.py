"""Questions answered greedily by a core, and judged by rules that a program can decide."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fathom.core.loop import EngineCore
from fathom.core.types import FinishReason, Request, SamplingParams, TokenEvent
from fathom.engine.batch import BatchRun, Job
from fathom.engine.heldout import Check, Question
from fathom.engine.progress import ProgressBar
from fathom.engine.results import Choice
from fathom.engine.text_side import TextSide
from fathom.spec.quality import TaskScore
from fathom.text.output import OutputStream


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote: visible text, and calls as (name, JSON text of arguments)."""

    content: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`is_valid`: of the right form. `is_correct`: what was wanted."""

    is_valid: bool
    is_correct: bool


def score_tasks(
    core: EngineCore, text: TextSide, questions: Sequence[Question], max_model_len: int
) -> tuple[TaskScore, ...]:
    """The share of valid and of correct answers by task, in order of the tasks' first questions.

    Raises: RequestError for a question over the context; EngineError where a step fails.
    """
    verdicts: dict[str, list[Verdict]] = {}
    found = answer(core, text, questions, max_model_len)
    for question, given in zip(questions, found, strict=True):
        verdicts.setdefault(question.task, []).append(judge(question, text, given))
    return tuple(
        TaskScore(
            task,
            len(rows),
            sum(row.is_valid for row in rows) / len(rows),
            sum(row.is_correct for row in rows) / len(rows),
        )
        for task, rows in verdicts.items()
    )


def answer(
    core: EngineCore, text: TextSide, questions: Sequence[Question], max_model_len: int
) -> list[tuple[int, ...]]:
    """Tokens of the greedy answer to each question, the one that ends it among them.

    Raises: as `score_tasks`.
    """
    jobs = []
    for index, question in enumerate(questions):
        prompt = question.prompt_ids(text)
        room = max(max_model_len - len(prompt), 1)
        sampling = SamplingParams(temperature=0.0, max_tokens=min(question.max_tokens, room))
        request = Request(
            id=str(index),
            prompt_ids=prompt,
            sampling=sampling,
            seed=0,
            eos_token_ids=text.tokenizer.eos_ids,
        )
        jobs.append(Job((request,), [Choice.begin(text.tokenizer, sampling, 0)]))
    bar = ProgressBar(len(jobs), sys.stderr)
    try:
        BatchRun(core, jobs).run(bar)
    finally:
        bar.close()
    return [job.choices[0].output().token_ids for job in jobs]


def judge(question: Question, text: TextSide, token_ids: tuple[int, ...]) -> Verdict:
    """Whether an answer is valid and right, by the question's rule."""
    wanted = read(question, text, question.answer_ids(text))
    return _RULES[question.check](question, wanted, read(question, text, token_ids))


def read(question: Question, text: TextSide, token_ids: tuple[int, ...]) -> Answer:
    """An answer's parts, as the server would tell them apart."""
    reads_tools = bool(question.tools)
    prompt = question.prompt_ids(text)
    form = text.template.output_format(text.tokenizer, prompt, reads_tools=reads_tools)
    stream = OutputStream(text.tokenizer, SamplingParams(), format=form)
    has_ended = token_ids[-1:] != () and token_ids[-1] in text.tokenizer.eos_ids
    end: FinishReason = "stop" if has_ended else "length"
    delta = stream.push(TokenEvent("0", token_ids, finish_reason=end))
    assert delta is not None
    calls: dict[int, tuple[str, str]] = {}
    for piece in delta.tool_calls:
        name, arguments = calls.get(piece.index, ("", ""))
        calls[piece.index] = (name + (piece.name or ""), arguments + piece.arguments)
    return Answer(delta.text, tuple(calls[index] for index in sorted(calls)))


def _judge_exact(_: Question, wanted: Answer, found: Answer) -> Verdict:
    content = found.content.strip()
    return Verdict(bool(content), content == wanted.content.strip())


def _judge_number(_: Question, wanted: Answer, found: Answer) -> Verdict:
    """By the last whole number in the text."""
    numbers = [re.findall(r"\d+", one.content)[-1:] for one in (wanted, found)]
    return Verdict(bool(numbers[1]), bool(numbers[1]) and numbers[0] == numbers[1])


def _judge_json(_: Question, wanted: Answer, found: Answer) -> Verdict:
    value = _parsed(found.content)
    is_valid = isinstance(value, dict)
    return Verdict(is_valid, is_valid and value == _parsed(wanted.content))


def _judge_calls(question: Question, wanted: Answer, found: Answer) -> Verdict:
    """Valid: each call is of an offered tool, with the arguments that it requires and no others."""
    offered = {tool["function"]["name"]: tool["function"] for tool in question.tools}
    is_valid = bool(found.calls) and all(
        name in offered and _fits(_parsed(arguments), offered[name].get("parameters", {}))
        for name, arguments in found.calls
    )
    pairs = [[(name, _parsed(text)) for name, text in one.calls] for one in (wanted, found)]
    return Verdict(is_valid, is_valid and pairs[0] == pairs[1])


def _fits(arguments: object, schema: Mapping[str, Any]) -> bool:
    if not isinstance(arguments, dict):
        return False
    return set(schema.get("required", ())) <= set(arguments) <= set(schema.get("properties", ()))


def _parsed(text: str) -> object:
    """The JSON value, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


_RULES: Mapping[Check, Callable[[Question, Answer, Answer], Verdict]] = MappingProxyType(
    {
        "exact": _judge_exact,
        "number": _judge_number,
        "json": _judge_json,
        "calls": _judge_calls,
    }
)
