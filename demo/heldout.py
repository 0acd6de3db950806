"""Writes the held-out conversations that the package ships for `fathom eval`.

    python -m demo.heldout > src/fathom/weights/embedded/heldout.jsonl

They are the first cases of the eval split, which shares no content with training, taken in turn
from each task. `demo.export` leaves the file alone: it depends on the generator only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from demo.cases import SUITES, Case
from demo.chat import EOS

TASKS = (
    "talk", "world", "fathom", "copy", "json", "calls", "add2", "add3", "story", "retrieval",
)  # fmt: skip
CASES_PER_TASK = 20


def check_of(case: Case) -> str:
    """The name of the rule by which `fathom eval` judges an answer."""
    if case.conversation.turns[-1].calls:
        return "calls"
    if case.task.startswith("json"):
        return "json"
    return "number" if case.task.startswith(("add", "subtract")) else "exact"


def row(case: Case) -> dict[str, Any]:
    """A line of the file: the conversation so far, and what the model is to write."""
    talk = case.conversation
    written = "".join(text for text, is_answer in talk.pieces() if is_answer)
    if len(talk.turns) > 1:
        raise ValueError("an answer is told from those before it only where there are none")
    found = {
        "task": case.task,
        "messages": talk.messages(),
        "thinking": case.thinking,
        "completion": written.removesuffix(EOS),
        "check": check_of(case),
        "max_tokens": case.max_tokens,
    }
    return found | ({"tools": [tool.to_openai() for tool in talk.tools]} if talk.tools else {})


def rows() -> Iterator[dict[str, Any]]:
    """All lines; the first ones hold some of every task."""
    for seed in range(CASES_PER_TASK):
        for task in TASKS:
            yield row(Case(task, seed, SUITES[task].draw(task, seed)))


def render() -> str:
    """The file."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows())


if __name__ == "__main__":
    sys.stdout.write(render())
