"""Arguments of a tool call as they come: JSON made well-formed where that needs no guess."""

from __future__ import annotations

import json
import re
from typing import Literal

RepairLevel = Literal["none", "lexical", "closing"]
Flaw = Literal["", "repaired", "invalid"]

_END_OF_PLAIN = re.compile(r'["\\\x00-\x1f]')  # what ends a stretch of a string
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_WORDS = {"true": "true", "false": "false", "null": "null"}
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_SPACE, _HEX = " \t\n\r", "0123456789abcdefABCDEF"
_CLOSER = {"{": "}", "[": "]"}
_MAX_WORD = 5


class ArgumentsReader:
    """A pushdown automaton over characters, so that how text is cut changes nothing.

    `level` says what is mended: "none" nothing; "lexical" what one character decides: a raw control
    character in a string is escaped, a backslash that escapes nothing is doubled (`\\'` is `'`), a
    comma before a closing bracket goes, Python's True, False and None become JSON's; "closing" also
    the brackets that the model left open when it ended the call (never an open string). Text that
    stays malformed passes as it is.
    Cost: linear; holds back a few characters.
    """

    def __init__(self, level: RepairLevel = "closing") -> None:
        self._mends = level != "none"
        self._closes = level == "closing"
        self._stack: list[str] = []
        self._expects: Literal["value", "first", "key", "colon", "more", "end"] = "value"
        self._mode: Literal["plain", "string", "escape", "word", "number", "broken"] = "plain"
        self._held: list[str] = []  # a comma and what follows it, an escape, or a word
        self._number: list[str] = []
        self._is_key = self._is_mended = False

    def feed(self, text: str) -> str:
        """What can be told of the arguments by now."""
        out: list[str] = []
        at = 0
        while at < len(text):
            if self._mode == "broken":
                out.append(text[at:])
                break
            if self._mode == "string":
                found = _END_OF_PLAIN.search(text, at)
                end = found.start() if found else len(text)
                out.append(text[at:end])
                at = end
                if found:
                    self._in_string(text[at], out)
                    at += 1
                continue
            if self._step(text[at], out):
                at += 1
        return "".join(out)

    def finish(self, *, is_ended: bool) -> tuple[str, Flaw]:
        """The rest, and what was wrong. `is_ended`: by the model and not by a limit."""
        out: list[str] = []
        if self._mode in ("word", "number"):
            self._end_literal(out)
        is_open = bool(self._stack) and self._mode == "plain" and self._expects in ("more", "first")
        if self._mode == "plain" and self._held and self._mends and is_ended and self._closes:
            self._drop_comma(out)
            is_open = True
        out.extend(self._held)
        if is_open and is_ended and self._closes:
            out.extend(_CLOSER[opener] for opener in reversed(self._stack))
            return "".join(out), "repaired"
        if self._stack or self._mode != "plain" or self._expects != "end":
            return "".join(out), "invalid"
        return "".join(out), "repaired" if self._is_mended else ""

    def _step(self, char: str, out: list[str]) -> bool:
        """Take a character outside a string; False where it must be looked at again."""
        match self._mode:
            case "escape":
                return self._in_escape(char, out)
            case "word" | "number":
                if char in _SPACE or char in ',:]}[{"':
                    self._end_literal(out)
                    return False
                if self._mode == "number":
                    out.append(char)
                    self._number.append(char)
                else:
                    self._held.append(char)
                    if len(self._held) > _MAX_WORD:
                        self._break(out)
                return True
            case _:
                self._in_plain(char, out)
                return True

    def _in_plain(self, char: str, out: list[str]) -> None:
        if char in _SPACE:
            (self._held if self._held else out).append(char)
            return
        if char in "}]" and self._held and self._mends:
            self._drop_comma(out)
        elif self._held:  # the comma was right
            out.extend(self._held)
            self._held.clear()
        if self._expects == "end" or not self._accepts(char, out):
            self._break(out, char)

    def _accepts(self, char: str, out: list[str]) -> bool:
        """Take a character that is no space; False where it cannot stand here."""
        top = self._stack[-1] if self._stack else ""
        if char in "}]":
            if self._expects not in ("more", "first") or not top or _CLOSER[top] != char:
                return False
            self._stack.pop()
            self._value_ended()
        elif char in ",:":
            if self._expects != ("more" if char == "," else "colon"):
                return False
            self._expects = "key" if char == "," and top == "{" else "value"
            if char == ",":
                self._held.append(char)
                return True
        elif char == '"':
            if self._expects in ("colon", "more"):
                return False
            self._is_key = top == "{" and self._expects in ("first", "key")
            self._mode = "string"
        elif self._expects == "value" or (self._expects == "first" and top == "["):
            return self._begin_value(char, out)
        else:
            return False
        out.append(char)
        return True

    def _begin_value(self, char: str, out: list[str]) -> bool:
        if char in "{[":
            self._stack.append(char)
            self._expects = "first"
            out.append(char)
        elif char in "-0123456789":
            self._mode, self._number = "number", [char]
            out.append(char)
        elif char.isalpha():
            self._mode = "word"
            self._held.append(char)
        else:
            return False
        return True

    def _in_string(self, char: str, out: list[str]) -> None:
        if char == '"':
            out.append(char)
            self._mode = "plain"
            if self._is_key:
                self._expects = "colon"
            else:
                self._value_ended()
        elif char == "\\":
            self._held.append(char)
            self._mode = "escape"
        elif self._mends:
            out.append(json.dumps(char)[1:-1])
            self._is_mended = True
        else:
            self._break(out, char)

    def _in_escape(self, char: str, out: list[str]) -> bool:
        held = self._held
        if len(held) == 1 and char in '"\\/bfnrtu':
            held.append(char)
            is_whole = char != "u"
        elif len(held) > 1 and char in _HEX:
            held.append(char)
            is_whole = len(held) == 6
        elif not self._mends:
            self._break(out)
            return False
        else:  # it escapes nothing
            is_quote = len(held) == 1 and char == "'"
            out.append("" if is_quote else "\\" + "".join(held))
            held.clear()
            self._mode, self._is_mended = "string", True
            return False
        if is_whole:
            out.extend(held)
            held.clear()
            self._mode = "string"
        return True

    def _end_literal(self, out: list[str]) -> None:
        """The number or word is over: it may have been none."""
        if self._mode == "number":
            is_right = _NUMBER.fullmatch("".join(self._number)) is not None
        else:
            word = "".join(self._held)
            known = {**_WORDS, **(_PYTHON if self._mends else {})}
            is_right = word in known
            if is_right:
                out.append(known[word])
                self._held.clear()
                self._is_mended = self._is_mended or word in _PYTHON
        self._mode = "plain"
        self._value_ended()
        if not is_right:
            self._break(out)

    def _value_ended(self) -> None:
        self._expects = "more" if self._stack else "end"

    def _drop_comma(self, out: list[str]) -> None:
        out.extend(self._held[1:])
        self._held.clear()
        self._expects, self._is_mended = "more", True

    def _break(self, out: list[str], char: str = "") -> None:
        """From here on everything passes as it comes."""
        out.extend((*self._held, char))
        self._held.clear()
        self._mode = "broken"
