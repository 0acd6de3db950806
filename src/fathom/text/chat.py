"""Conversations to token ids, by the template of the checkpoint's generation.

Templates are code, not Jinja: a checkpoint runs no program here, and what is control and what is
text stays apart until both are ids. The operator alone may give one in Jinja.
"""

from __future__ import annotations

from collections.abc import Mapping

from fathom.errors import RequestError
from fathom.text.messages import parse_messages, parse_tools
from fathom.text.render import Conversation, render_plain, render_v3, render_v31
from fathom.text.segments import PromptBuilder, Segment, encode_segments
from fathom.text.templates import TEMPLATES as TEMPLATES
from fathom.text.templates import ChatTemplate as ChatTemplate
from fathom.text.templates import choose_template as choose_template
from fathom.text.tokenizer import Tokenizer


def render_chat(
    template: ChatTemplate,
    messages: object,
    *,
    tools: object = None,
    thinking: bool | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
) -> tuple[Segment, ...]:
    """The prompt of a conversation in OpenAI's form, control tokens and text apart.

    `continue_final_message`, or `prefix` on the last message, leaves an assistant's last message
    open; `add_generation_prompt` None opens an answer otherwise.
    Raises: RequestError naming the field that is wrong or that the template cannot express.
    """
    conversation = parse_messages(messages)
    offered = parse_tools(tools)
    last = conversation[-1]
    continues = continue_final_message or last.prefix
    if continues and (last.role != "assistant" or last.tool_calls):
        calls = " with tool calls" if last.tool_calls else ""
        raise RequestError(
            "continue_final_message has no message to continue",
            param="continue_final_message",
            found=f"a last message of role {last.role}{calls}",
            wanted="an assistant's message of text",
        )
    if continues and add_generation_prompt:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other",
            param="add_generation_prompt",
            fix="leave one of them out",
        )
    opens = not continues if add_generation_prompt is None else add_generation_prompt
    chat = Conversation(
        messages=conversation,
        tools=offered,
        thinking=template.thinking_mode(thinking),
        add_generation_prompt=opens,
        continues=continues,
    )
    return _render(template, chat).segments()


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: object,
    tools: object = None,
    thinking: bool | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
) -> tuple[int, ...]:
    """Token ids of `render_chat`'s prompt. Text in messages never becomes a control token.

    Raises: RequestError as `render_chat`; CheckpointError where the tokenizer lacks a control
    token of the template.
    """
    tokenizer.require()
    segments = render_chat(
        template,
        messages,
        tools=tools,
        thinking=thinking,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )
    return encode_segments(tokenizer, segments)


def asked_thinking(asked: Mapping[str, object]) -> bool | None:
    """What `chat_template_kwargs` ask of the template; None where they say nothing.

    Raises: RequestError for anything else than `thinking`.
    """
    for name, value in asked.items():
        if name not in ("thinking", "enable_thinking") or not isinstance(value, bool):
            raise RequestError(
                f"chat_template_kwargs.{name} is not honoured",
                param="chat_template_kwargs",
                found=f"{name}={value!r}",
                wanted="thinking (or enable_thinking), true or false",
            )
    values = set(asked.values())
    if len(values) > 1:
        raise RequestError(
            "chat_template_kwargs contradict each other",
            param="chat_template_kwargs",
            found=repr(dict(asked)),
        )
    return bool(values.pop()) if values else None


def _render(template: ChatTemplate, chat: Conversation) -> PromptBuilder:
    if template.family == "unknown":
        raise RequestError(
            "this checkpoint's chat template is none that fathom knows",
            param="messages",
            code="unsupported_template",
            wanted=", ".join(TEMPLATES),
            fix="choose one of them by name, or send the prompt to /v1/completions",
        )
    if template.tool_format is None:
        if chat.tools:
            raise _no_tools(template, "tools")
        for index, message in enumerate(chat.messages):
            if message.role == "tool" or message.tool_calls:
                raise _no_tools(template, f"messages[{index}]")
    if template.jinja is not None:
        return template.jinja.render(chat)
    if template.family == "v3.1":
        return render_v31(chat)
    if template.family == "v3":
        return render_v3(chat, template.style)
    return render_plain(chat)


def _no_tools(template: ChatTemplate, param: str) -> RequestError:
    return RequestError(
        f"the {template.name} chat template has no form for tools",
        param=param,
        code="unsupported_value",
        fix="leave tools out, or serve a checkpoint that was trained with them",
    )
