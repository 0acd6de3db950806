"""A chat template in Jinja that the operator gave (`--chat-template FILE`); never a request's.

It runs in an immutable sandbox with limits, and what is control and what is text stays apart: in
everything that clients wrote, the names of control tokens carry a mark through the template.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from fathom.errors import ConfigError, RequestError
from fathom.text.messages import Message, Tool
from fathom.text.render import Conversation
from fathom.text.sandbox import MAX_TEXT, Sandbox
from fathom.text.segments import PromptBuilder

MAX_TEMPLATE_BYTES = 256 * 1024
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # noncharacters, which no text is meant to have


@dataclass(frozen=True, slots=True)
class JinjaLimits:
    """What one prompt may take: seconds, and characters of output."""

    time_s: float = 2.0
    output_chars: int = MAX_TEXT


class JinjaTemplate:
    """A compiled template. Rendering is a pure function: any number of threads may share it.

    `specials` are the names of the tokenizer's control tokens. Raises: ConfigError for what is not
    Jinja or too long.
    """

    def __init__(
        self,
        source: str,
        *,
        specials: Iterable[str] = (),
        bos: str = "",
        eos: str = "",
        limits: JinjaLimits = JinjaLimits(),
    ) -> None:
        self.source, self._limits, self._bos, self._eos = source, limits, bos, eos
        self._specials = tuple(sorted({*specials, bos, eos} - {""}, key=len, reverse=True))
        size = len(source.encode())
        if size > MAX_TEMPLATE_BYTES:
            wanted = f"at most {MAX_TEMPLATE_BYTES}"
            raise ConfigError("--chat-template", found=f"{size} bytes", wanted=wanted)
        try:
            Sandbox().from_string(source)
        except TemplateError as error:
            raise ConfigError("--chat-template", found=f"no Jinja: {error}") from None

    def render(self, chat: Conversation) -> PromptBuilder:
        """The prompt.

        Raises: RequestError where the template refuses the conversation or takes too much.
        """
        messages = [_message(message) for message in chat.messages]
        tools = [_tool(tool) for tool in chat.tools]
        guard = _Guard(self._specials, json.dumps([messages, tools], ensure_ascii=False))
        variables = {
            "messages": [guard.mark_message(message) for message in messages],
            "tools": guard.mark(tools) or None,
            "documents": None,
            "add_generation_prompt": chat.add_generation_prompt,
            "thinking": chat.thinking,
            "enable_thinking": chat.thinking,
            "bos_token": self._bos,
            "eos_token": self._eos,
        }
        try:
            text = self._text(variables)
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise RequestError(
                "the chat template cannot express this conversation",
                param="messages",
                found=str(error)[:200],
            ) from None
        if chat.continues:
            text = _cut_after(text, guard.mark(chat.messages[-1].content.strip()))
        return guard.prompt(text)

    def _text(self, variables: Mapping[str, object]) -> str:
        environment = Sandbox()  # of its own: the clock below is this prompt's
        deadline = time.monotonic() + self._limits.time_s

        def check() -> None:
            if time.monotonic() > deadline:
                raise SecurityError(f"it took more than {self._limits.time_s:g} s")

        environment.check = check
        parts: list[str] = []
        length = 0
        for part in environment.from_string(self.source).generate(variables):
            check()
            length += len(part)
            if length > self._limits.output_chars:
                raise SecurityError(f"it made more than {self._limits.output_chars} characters")
            parts.append(part)
        return "".join(parts)


class _Guard:
    """Marks the names of control tokens in what clients wrote, and reads a prompt accordingly."""

    def __init__(self, specials: Sequence[str], everything: str) -> None:
        mark = next((char for char in _MARKS if char not in everything), None)
        if mark is None:
            raise RequestError("the text is full of noncharacters", param="messages")
        self._mark = mark
        names = "|".join(map(re.escape, specials)) or "(?!)"
        self._names, self._found = re.compile(names), re.compile(f"({mark}?)({names})")
        self._starts = tuple(name[:i] for name in specials for i in range(1, len(name)))
        self._ends = tuple(name[i:] for name in specials for i in range(1, len(name)))
        self._inside = "\0".join(specials)

    def mark_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message, marked but for its role."""
        return {**self.mark(message), "role": message["role"]}

    def mark(self, value: Any) -> Any:
        """`value` with a mark before each name in its texts, and where a text could make up a name
        with what the template puts beside it."""
        if isinstance(value, str):
            text = self._names.sub(lambda found: self._mark + found[0], value)
            if value and (value.startswith(self._ends) or value in self._inside):
                text = self._mark + text
            return text + self._mark if value.endswith(self._starts) else text
        if isinstance(value, Mapping):
            return {
                self._names.sub(lambda found: self._mark + found[0], key): self.mark(item)
                for key, item in value.items()
            }
        return [self.mark(item) for item in value] if isinstance(value, list) else value

    def prompt(self, text: str) -> PromptBuilder:
        """The prompt's parts: a name without a mark is control."""
        out, at = PromptBuilder(), 0
        for found in self._found.finditer(text):
            out.text(text[at : found.start()].replace(self._mark, ""))
            at = found.end()
            if found[1]:
                out.text(found[2])
            else:
                out.control(found[2])
        return out.text(text[at:].replace(self._mark, ""))


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        told["reasoning_content"] = message.reasoning
    if message.prefix:
        told["prefix"] = True
    if message.tool_calls:
        told["content"] = message.content or None
        told["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return told


def _tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}


def _cut_after(text: str, last: str) -> str:
    """`text` up to the end of the message to go on with, as transformers cuts it."""
    at = text.rfind(last)
    if at < 0:
        raise RequestError(
            "the chat template does not show the last message as it is",
            param="continue_final_message",
        )
    return text[: at + len(last)]
