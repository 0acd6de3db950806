"""DeepSeek's published prompt formats as code, one function per family.

Sources: `chat_template` in the tokenizer_config.json of deepseek-ai/DeepSeek-V2-Lite, -V2.5, -V3,
-V3-0324, -R1, -R1-0528, -R1-Distill-*, -V3.1; the tools block is the one in V3.1's model card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_THINK, SEP, THINK
from fathom.text.messages import Message, Tool, ToolCall
from fathom.text.segments import (
    ASSISTANT,
    BOS,
    EOS,
    OUTPUT_BEGIN,
    OUTPUT_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    USER,
    PromptBuilder,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a template renders. `continues`: the last message, an assistant's, is left open."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    add_generation_prompt: bool = True
    continues: bool = False

    def is_open(self, index: int) -> bool:
        """Whether message `index` is the one to continue."""
        return self.continues and index == len(self.messages) - 1


def render_v31(chat: Conversation) -> PromptBuilder:
    """DeepSeek-V3.1: `<think>` or `</think>` opens each answer; tool calls are bare."""
    out = PromptBuilder().control(BOS).text(_system(chat.messages))
    _tools_block(out, chat.tools, is_fenced=False)
    after_user = after_tool = False
    for index, message in enumerate(chat.messages):
        if message.role == "user":
            out.control(USER).text(message.content)
            after_user, after_tool = True, False
        elif message.role == "tool":
            out.control(OUTPUT_BEGIN).text(message.content).control(OUTPUT_END)
            after_user, after_tool = False, True
        elif message.role == "assistant":
            thinks = chat.thinking and chat.is_open(index)
            if after_user:
                out.control(ASSISTANT, THINK if thinks else END_THINK)
            if message.tool_calls:
                out.text(message.content)
                _calls(out, message.tool_calls, is_fenced=False)
            else:
                if thinks and after_user:
                    _reasoning(out, message, END_THINK)
                out.text(_answer(message.content, drops_reasoning=not after_tool, last=False))
                if not chat.is_open(index):
                    out.control(EOS)
            after_user = after_tool = False
    if chat.add_generation_prompt and after_user:
        out.control(ASSISTANT, THINK if chat.thinking else END_THINK)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class V3Style:
    """How the templates of V2.5 to R1 differ. `closes_user`: `<｜Assistant｜>` follows each user
    message (0324, 0528) and not precedes each answer. `drops_reasoning`: from earlier answers;
    "any": from those with calls or after results, too. `opens_reasoning`: the generation prompt
    ends in `<think>\\n`. `between_results`: of tools. `one_system`: only the last one counts.
    """

    closes_user: bool = False
    drops_reasoning: Literal["no", "answers", "any"] = "no"
    opens_reasoning: bool = False
    between_results: str = "\n"
    one_system: bool = False


def render_v3(chat: Conversation, style: V3Style) -> PromptBuilder:
    """DeepSeek-V2.5, V3, R1 and its distillations: tool calls are fenced.

    Templates before 0324 carry state over from one round of tool calls to the next, which breaks
    their own markup from the second round on; V2.5's and the distillations' do not close a block
    of one call and pass over calls that come with text. Here every round is well-formed, as in
    0324; `--chat-template FILE` gives a published template to the letter.
    """
    out = PromptBuilder().control(BOS).text(_system(chat.messages, style.one_system))
    _tools_block(out, chat.tools, is_fenced=True)
    has_tag = after_tool = False  # has_tag: `<｜Assistant｜>` stands already
    for index, message in enumerate(chat.messages):
        if message.role == "user":
            out.control(USER).text(message.content)
            if style.closes_user:
                out.control(ASSISTANT)
            has_tag, after_tool = style.closes_user, False
        elif message.role == "tool":
            if after_tool:
                out.text(style.between_results)
            else:
                out.control(OUTPUTS_BEGIN)
            out.control(OUTPUT_BEGIN).text(message.content).control(OUTPUT_END)
            has_tag, after_tool = False, True
        elif message.role == "assistant":
            if after_tool:
                out.control(OUTPUTS_END)
            elif not style.closes_user:
                out.control(ASSISTANT)
            _v3_answer(out, message, style, after_tool=after_tool, is_open=chat.is_open(index))
            has_tag = after_tool = False
    if after_tool:
        out.control(OUTPUTS_END)
    if chat.add_generation_prompt and not after_tool:
        if not has_tag:
            out.control(ASSISTANT)
        if style.opens_reasoning:
            out.control(THINK).text("\n")
    return out


def _v3_answer(
    out: PromptBuilder, message: Message, style: V3Style, *, after_tool: bool, is_open: bool
) -> None:
    is_plain = not (after_tool or message.tool_calls)
    drops = style.drops_reasoning == "any" or (style.drops_reasoning == "answers" and is_plain)
    content = _answer(message.content, drops_reasoning=drops, last=True)
    if message.tool_calls:
        out.text(content)
        _calls(out, message.tool_calls, is_fenced=True)
        return
    if is_open and style.drops_reasoning != "no" and message.reasoning:
        out.control(THINK).text("\n")
        _reasoning(out, message, END_THINK, before="\n", after="\n\n")
    out.text(content)
    if not is_open:
        out.control(EOS)


def render_plain(chat: Conversation) -> PromptBuilder:
    """DeepSeek-V2's format, in words: also for checkpoints that come without a template."""
    out = PromptBuilder().control(BOS)
    for index, message in enumerate(chat.messages):
        if message.role == "system":
            out.text(message.content, "\n\n")
        elif message.role == "user":
            out.text("User: ", message.content, "\n\n")
        elif message.role == "assistant":
            out.text("Assistant: ", message.content)
            if not chat.is_open(index):
                out.control(EOS)
    if chat.add_generation_prompt:
        out.text("Assistant:")
    return out


def _system(messages: Sequence[Message], only_last: bool = False) -> str:
    """All system messages, wherever they stand, open the prompt."""
    texts = [message.content for message in messages if message.role == "system"]
    return "\n\n".join(texts[-1:] if only_last else texts)


def _answer(content: str, *, drops_reasoning: bool, last: bool) -> str:
    """An earlier answer without its reasoning: from the last (R1) or first `</think>` on."""
    if not drops_reasoning or END_THINK not in content:
        return content
    return content.rsplit(END_THINK, 1)[1] if last else content.split(END_THINK, 1)[1]


def _reasoning(
    out: PromptBuilder, message: Message, end: str, *, before: str = "", after: str = ""
) -> None:
    """The reasoning of the message to continue; closed where an answer follows it."""
    out.text(message.reasoning)
    if message.reasoning and message.content:
        out.text(before).control(end).text(after)


def _calls(out: PromptBuilder, calls: Sequence[ToolCall], *, is_fenced: bool) -> None:
    out.control(CALLS_BEGIN)
    for index, call in enumerate(calls):
        if is_fenced:
            out.text("\n" if index else "").control(CALL_BEGIN).text("function").control(SEP)
            out.text(call.name, "\n```json\n", call.arguments, "\n```").control(CALL_END)
        else:
            out.control(CALL_BEGIN).text(call.name).control(SEP)
            out.text(call.arguments).control(CALL_END)
    out.control(CALLS_END, EOS)


def _tools_block(out: PromptBuilder, tools: Sequence[Tool], *, is_fenced: bool) -> None:
    """The block of DeepSeek-V3.1's model card; for V3 and R1 with their own form of a call."""
    if not tools:
        return
    out.text("\n\n## Tools\nYou have access to the following tools:\n")
    for tool in tools:
        schema = json.dumps(tool.parameters, ensure_ascii=False)
        out.text(f"\n### {tool.name}\nDescription: {tool.description}\n\nParameters: {schema}\n")
    out.text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n")
    out.control(CALLS_BEGIN, CALL_BEGIN)
    if is_fenced:
        out.text("function").control(SEP).text("tool_call_name\n```json\ntool_call_arguments\n```")
    else:
        out.text("tool_call_name").control(SEP).text("tool_call_arguments")
    separators = "with a newline between" if is_fenced else "directly without separators or spaces"
    out.control(CALL_END).text("{additional_tool_calls}").control(CALLS_END).text(
        "\n\nWhere:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        f"Schema\n- For multiple tool calls, chain them {separators}\n"
    )
