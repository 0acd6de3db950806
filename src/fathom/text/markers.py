"""The markers that structure an answer, and pieces of text between them."""

from __future__ import annotations

from msgspec import Struct

THINK = "<think>"
END_THINK = "</think>"
CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEP = "<｜tool▁sep｜>"

REASONING_MARKERS = (THINK, END_THINK)
TOOL_MARKERS = (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEP)


class Piece(Struct, frozen=True):
    """A stretch of an answer: some text, or one marker (then `text` is empty)."""

    text: str = ""
    marker: str | None = None
