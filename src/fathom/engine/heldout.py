"""Text to measure a format's quality on: plain text, or JSONL with one text or question a line.

A question is a conversation with the answer that is right, as the model would write it:

  {"text": "..."}
  {"messages": [...], "completion": "...", "check": "exact", "task": "copy",
   "thinking": false, "tools": [...], "max_tokens": 160}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from fathom.engine.text_side import TextSide
from fathom.errors import ConfigError, RequestError
from fathom.spec.quality import Document
from fathom.text.chat import encode_chat
from fathom.text.prompt import encode_prompt
from fathom.weights.embedded import embedded_path

Check = Literal["exact", "number", "json", "calls"]
# Plain text is cut into pieces of so many tokens, each without the ones before it.
_WINDOW_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation and the answer wanted. `completion`: all that the model is to write, control
    tokens and all, without the token that ends it. `check` names the rule of `engine.answers`."""

    messages: tuple[Mapping[str, Any], ...]
    completion: str
    check: Check = "exact"
    task: str = "all"
    thinking: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int = 256

    def prompt_ids(self, text: TextSide) -> tuple[int, ...]:
        """Tokens up to where the answer begins. Raises: RequestError."""
        return encode_chat(
            text.tokenizer,
            text.template,
            list(self.messages),
            tools=list(self.tools) or None,
            thinking=self.thinking,
        )

    def answer_ids(self, text: TextSide) -> tuple[int, ...]:
        """Tokens of the right answer, its end among them."""
        ids = text.tokenizer.encode(self.completion, special=True)
        return (*ids, *text.tokenizer.eos_ids[:1])


Row = str | Question


def embedded_heldout() -> Path:
    """Conversations that the embedded model's training never saw."""
    return embedded_path() / "heldout.jsonl"


def read_rows(path: Path) -> tuple[Row, ...]:
    """The texts and questions of a file. Raises: ConfigError naming the line at fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path}", found=str(error), wanted="a file in UTF-8") from error
    if path.suffix != ".jsonl":
        rows: tuple[Row, ...] = (text,) if text.strip() else ()
    else:
        lines = enumerate(text.splitlines(), start=1)
        rows = tuple(_row(line, f"{path}:{number}") for number, line in lines if line.strip())
    if not rows:
        raise ConfigError(f"--text {path}", found="no text")
    return rows


def documents(rows: Sequence[Row], text: TextSide, num_tokens: int) -> tuple[Document, ...]:
    """Rows as tokens, in their order, until `num_tokens` of them are scored: of a question the
    answer's, of a text all but the first.

    Raises: RequestError for a conversation that the template cannot express; ConfigError where
    nothing is left to score.
    """
    found, left = [], num_tokens
    for document in _documents(rows, text):
        if left <= 0:
            break
        most = document.first_scored + left
        found.append(Document(document.token_ids[:most], document.first_scored))
        left -= found[-1].num_scored
    if not found:
        raise ConfigError("--text", found="too few tokens", wanted="texts of two tokens or more")
    return tuple(found)


def _documents(rows: Iterable[Row], text: TextSide) -> Iterator[Document]:
    for row in rows:
        if isinstance(row, Question):
            prompt = row.prompt_ids(text)
            yield Document((*prompt, *row.answer_ids(text)), len(prompt))
            continue
        ids = encode_prompt(text.tokenizer, row)
        for start in range(0, len(ids) - 1, _WINDOW_TOKENS):
            window = ids[start : start + _WINDOW_TOKENS]
            if len(window) > 1:
                yield Document(window)


def _row(line: str, where: str) -> Row:
    try:
        raw = json.loads(line)
        if isinstance(raw, dict) and set(raw) == {"text"} and isinstance(raw["text"], str):
            if not raw["text"]:
                raise ConfigError(f"{where}: text is empty")
            return str(raw["text"])
        known = {one.name for one in fields(Question)}
        if isinstance(raw, dict) and (unknown := sorted(set(raw) - known)):
            raise ConfigError(f"{where}: unknown fields", found=", ".join(unknown))
        return msgspec.convert(raw, Question)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{where} is neither a text nor a question",
            found=str(error),
            wanted='{"text": ...}, or {"messages": ..., "completion": ..., "check": '
            f"{' | '.join(get_args(Check))}}}",
        ) from error
    except RequestError as error:
        raise ConfigError(f"{where}: {error.what}", found=error.found) from error
