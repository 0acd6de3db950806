"""Reads tool calls out of an answer as it comes, in DeepSeek's two formats, whichever is written.

fenced (V3, R1):  CALLS_BEGIN (CALL_BEGIN "function" SEP name "\\n```json\\n" arguments "\\n```"
                  CALL_END "\\n"?)+ CALLS_END
bare (V3.1):      CALLS_BEGIN (CALL_BEGIN name SEP arguments CALL_END)+ CALLS_END

    content ──CALLS_BEGIN──> block ──CALL_BEGIN──> header ──SEP──> (fence) ──> arguments
       ^────────────CALLS_END──┘ ^─────────────────────CALL_END───────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fathom.text.arguments import ArgumentsReader, RepairLevel
from fathom.text.delta import ToolCallDelta
from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP, Piece

ToolFormat = Literal["fenced", "bare"]
_FENCES = ("```json\n", "```\n")
_MAX_NAME_CHARS = 256
_SPACE = " \t\n\r"

Told = list[str | ToolCallDelta]


class ToolCallParser:
    """Turns pieces into content text and tool call deltas, independent of how text is cut.

    A call is announced when its header is complete; its arguments then stream as the model writes
    them, mended up to level `repairs`. Markup that is not of the formats comes back as content,
    markers and all, and sets `has_stray_markup`: nothing is lost but white space between calls.
    `make_id` names call number i. Cost: linear in the text.
    """

    def __init__(self, make_id: Callable[[int], str], repairs: RepairLevel = "closing") -> None:
        self._make_id = make_id
        self._repairs = repairs
        self._state: Literal["content", "block", "header", "fence", "arguments"] = "content"
        self._raw: list[str] = []  # since the last thing told: what malformed markup comes back as
        self._header = ""
        self._arguments = ArgumentsReader(repairs)
        self._is_fenced = False
        self._tail: list[str] = []  # end of the arguments that may be white space and the fence
        self._is_empty_call = True
        self._calls_in_block: int | None = None  # None outside CALLS_BEGIN .. CALLS_END
        self.num_calls = 0
        self.has_stray_markup = False

    @property
    def is_outside(self) -> bool:
        """Whether what comes next is content, as far as is known."""
        return self._state == "content"

    def push(self, piece: Piece) -> Told:
        """What the piece makes known: content as str, calls as deltas."""
        if piece.marker is not None:
            return self._marker(piece.marker)
        if not piece.text:
            return []
        match self._state:
            case "content":
                return [piece.text]
            case "block":
                return self._between_calls(piece.text)
            case "header":
                return self._read_header(piece.text)
            case "fence":
                return self._read_fence(piece.text)
            case "arguments":
                return self._read_arguments(piece.text)

    def finish(self) -> Told:
        """What was held back: an unfinished header as content, the rest of cut-off arguments."""
        return self.interrupt(is_cut_off=True)

    def interrupt(self, *, is_cut_off: bool = False) -> Told:
        """What was held back, now that something else comes: reasoning ends an open call."""
        if self._state == "arguments":
            return self._end_call(is_cut_off=is_cut_off)
        if self._state == "block" and self._calls_in_block:
            self._raw.clear()
        return self._give_up()

    def _marker(self, marker: str) -> Told:
        match self._state:
            case "content" | "block":
                return self._marker_outside(marker)
            case "header" if marker == SEP:
                return self._end_header()
            case "arguments":
                if marker == CALL_END:
                    return self._end_call()
                if marker in (CALL_BEGIN, CALLS_BEGIN, CALLS_END):  # CALL_END was forgotten
                    return [*self._end_call(), *self._marker_outside(marker)]
                self.has_stray_markup = True  # of a tool that is told about markers, perhaps
                return self._read_arguments(marker)
            case _:
                return [*self._give_up(), *self._marker_outside(marker)]

    def _marker_outside(self, marker: str) -> Told:
        """A marker in content or between calls."""
        if marker == CALL_BEGIN:
            if self._calls_in_block:
                self._raw.clear()
            self._state, self._header = "header", ""
            self._raw.append(marker)
            return []
        if marker == CALLS_BEGIN and self._calls_in_block is None:
            self._state, self._calls_in_block, self._raw = "block", 0, [marker]
            return []
        if marker == CALLS_END and self._calls_in_block:
            self._state, self._calls_in_block = "content", None
            self._raw.clear()
            return []
        self._raw.append(marker)
        return self._give_up()

    def _between_calls(self, text: str) -> Told:
        body = text.rstrip(_SPACE)
        if not body or not self._calls_in_block:
            self._raw.append(text)
            return self._give_up() if body else []
        told, self._raw = "".join((*self._raw, body)), [text[len(body) :]]
        return [told]

    def _read_header(self, text: str) -> Told:
        self._header += text
        self._raw.append(text)
        return self._give_up() if len(self._header) > _MAX_NAME_CHARS else []

    def _end_header(self) -> Told:
        self._raw.append(SEP)
        header, self._header = self._header.strip(), ""
        if header == "function":
            self._state = "fence"
            return []
        return self._announce(header) if _is_name(header) else self._give_up()

    def _read_fence(self, text: str) -> Told:
        """After `function` and SEP: a name on its line, or arguments for a tool of that name."""
        self._header += text
        self._raw.append(text)
        if self._header.lstrip(_SPACE).startswith("{"):
            return [*self._announce("function"), *self._read_arguments(self._held_header())]
        name, newline, rest = self._header.partition("\n")
        if len(name) > _MAX_NAME_CHARS or (newline and not _is_name(name.strip())):
            return self._give_up()
        if not newline:
            return []
        for fence in _FENCES:
            if rest.startswith(fence):
                told = self._announce(name.strip())
                self._is_fenced = True
                return [*told, *self._read_arguments(rest[len(fence) :])]
        if rest.startswith("{"):  # the fence was forgotten
            return [*self._announce(name.strip()), *self._read_arguments(rest)]
        return [] if any(fence.startswith(rest) for fence in _FENCES) else self._give_up()

    def _held_header(self) -> str:
        held, self._header = self._header, ""
        return held

    def _announce(self, name: str) -> Told:
        index, self.num_calls = self.num_calls, self.num_calls + 1
        if self._calls_in_block is not None:
            self._calls_in_block += 1
        self._state, self._raw, self._tail = "arguments", [], []
        self._arguments = ArgumentsReader(self._repairs)
        self._is_empty_call, self._is_fenced = True, False
        return [ToolCallDelta(index, id=self._make_id(index), name=name)]

    def _read_arguments(self, text: str) -> Told:
        body = text.rstrip(_SPACE + "`" if self._is_fenced else _SPACE)
        if not body:
            self._tail.append(text)
            return []
        told = "".join((*self._tail, body))
        self._tail = [text[len(body) :]]
        if self._is_empty_call:
            told, self._is_empty_call = told.lstrip(_SPACE), False
        return self._tell(self._arguments.feed(told))

    def _tell(self, text: str) -> Told:
        return [ToolCallDelta(self.num_calls - 1, arguments=text)] if text else []

    def _end_call(self, *, is_cut_off: bool = False) -> Told:
        """Close the call: the closing fence and white space go; no arguments at all are `{}`."""
        tail = "".join(self._tail).rstrip(_SPACE)
        self._tail = []
        if self._is_fenced:
            tail = tail.removesuffix("```").rstrip(_SPACE)
        self._state = "content" if self._calls_in_block is None else "block"
        if self._is_empty_call and not tail:
            return [] if is_cut_off else self._tell("{}")
        text = self._arguments.feed(tail.lstrip(_SPACE) if self._is_empty_call else tail)
        rest, flaw = self._arguments.finish(is_ended=not is_cut_off)
        if not (text or rest or flaw):
            return []
        return [ToolCallDelta(self.num_calls - 1, arguments=text + rest, flaw=flaw)]

    def _give_up(self) -> Told:
        """What was held is not markup of the formats: it is content."""
        raw, self._raw, self._header = "".join(self._raw), [], ""
        self._state = "block" if self._calls_in_block else "content"
        if not self._calls_in_block:
            self._calls_in_block = None
        self.has_stray_markup = self.has_stray_markup or bool(raw)
        return [raw] if raw else []


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _MAX_NAME_CHARS and not any(char.isspace() for char in text)
