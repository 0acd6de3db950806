"""One choice of a chat answer from an upstream, with what the upstream left in its text parted."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from msgspec import Struct

from fathom.core.loop_guard import LoopGuard, LoopLimits
from fathom.text.channels import Channels, OutputFormat, Told
from fathom.text.delta import ToolCallDelta
from fathom.text.markers import THINK, Piece


class Function(Struct):
    """`tool_calls[].function`, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class Call(Struct):
    """`tool_calls[]`, or a piece of one."""

    index: int = 0
    id: str | None = None
    function: Function | None = None
    arguments_flaw: Literal["repaired", "invalid", ""] | None = None  # a fathom's


class Message(Struct):
    """`delta` of a chunk, as far as it is read."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Answer:
    """One choice: its text, parted where the upstream did not part it.

    `<think>` is markup at the very beginning only: later, and after reasoning that the upstream
    parted itself, it is a word of the answer. `loops`: what is a loop, in bytes of what it says.
    """

    def __init__(self, name: str, reads_tools: bool, loops: LoopLimits | None = None) -> None:
        self._name, self._reads_tools = name, reads_tools
        self._guard = None if loops is None else LoopGuard(loops)
        self._said = bytearray()
        self._head = ""  # the beginning, until it is clear whether it opens reasoning
        self._channels: Channels | None = None
        self._numbers: dict[tuple[str, int], int] = {}
        self.num_tokens = 0

    @property
    def num_calls(self) -> int:
        """Tool calls, whoever found them."""
        return len(self._numbers)

    @property
    def has_stray_markup(self) -> bool:
        """Whether some text is markup of calls that could not be read."""
        return self._channels is not None and self._channels.has_stray_markup

    def loops(self, message: Message) -> bool:
        """Whether the answer loops with this piece of it. Call it for each, once."""
        if self._guard is None:
            return False
        pieces = [message.reasoning_content or message.reasoning, message.content]
        pieces += [call.function.arguments for call in message.tool_calls or () if call.function]
        for byte in "".join(piece for piece in pieces if piece).encode("utf-8", "replace"):
            self._said.append(byte)
            if self._guard.is_loop(self._said, 0):
                return True
        return False

    def read(self, message: Message, told: Told) -> None:
        """A piece of the upstream's message."""
        reasoning = message.reasoning_content or message.reasoning or ""
        text = message.content or message.refusal or ""
        if reasoning or text or message.tool_calls:
            self.num_tokens += 1
        if reasoning:
            told.reasoning.append(reasoning)
            self._begin(False, told)
        if text:
            self._text(text, told)
        for call in message.tool_calls or ():
            self._call(call, told)

    def flush(self, told: Told) -> None:
        """The answer is over."""
        self._begin(False, told)
        if self._channels is not None:
            own = Told()
            self._channels.flush(own)
            self._take(own, told)

    def _text(self, text: str, told: Told) -> None:
        if self._channels is not None:
            self._read(text, told)
            return
        self._head += text
        start = self._head.lstrip()
        if start.startswith(THINK):
            self._begin(True, told)
        elif not THINK.startswith(start):
            self._begin(False, told)

    def _begin(self, opens_reasoning: bool, told: Told) -> None:
        if self._channels is not None:
            return
        format = OutputFormat(
            splits_reasoning=opens_reasoning, tools="bare" if self._reads_tools else None
        )
        self._channels = Channels(format, format.markers, self._name)
        head, self._head = self._head, ""
        self._read(head.lstrip() if opens_reasoning else head, told)

    def _read(self, text: str, told: Told) -> None:
        own = Told()
        if self._channels is not None:
            self._channels.read([Piece(text)], own)
        self._take(own, told)

    def _take(self, own: Told, told: Told) -> None:
        """What was found here; its calls are numbered together with the upstream's."""
        told.text += own.text
        told.reasoning += own.reasoning
        for call in own.calls:
            number = self._numbers.setdefault(("here", call.index), len(self._numbers))
            told.calls.append(replace(call, index=number))

    def _call(self, call: Call, told: Told) -> None:
        function = call.function or Function()
        is_new = ("there", call.index) not in self._numbers
        number = self._numbers.setdefault(("there", call.index), len(self._numbers))
        arguments, flaw = function.arguments or "", call.arguments_flaw or ""
        if is_new:
            name = function.name or ""
            call_id = call.id or f"{self._name}_{number}"
            told.calls.append(ToolCallDelta(number, call_id, name, arguments, flaw))
        elif arguments or flaw:
            told.calls.append(ToolCallDelta(number, arguments=arguments, flaw=flaw))
