"""Conversations to token ids, by the template of the checkpoint's generation.

Templates are code, not Jinja: a checkpoint runs no program here, and what is control and what is
text stays apart until both are ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fathom.errors import ConfigError, RequestError
from fathom.text.markers import END_THINK, THINK
from fathom.text.messages import parse_messages, parse_tools
from fathom.text.output import OutputFormat
from fathom.text.render import Conversation, V3Style, render_plain, render_v3, render_v31
from fathom.text.segments import ASSISTANT, USER, PromptBuilder, Segment, encode_segments
from fathom.text.tokenizer import Tokenizer
from fathom.text.tools import ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A prompt format. `reasons`: whether its models think before they answer, never, always, or
    when asked to. `tool_format` None: it cannot express tools."""

    name: str
    family: Literal["v3", "v3.1", "plain", "unknown"]
    reasons: Literal["never", "always", "asked"] = "never"
    tool_format: ToolFormat | None = None
    style: V3Style = field(default_factory=V3Style)

    def thinking_mode(self, thinking: bool | None) -> bool:
        """Whether the model will think, where a request asks for `thinking` (None: the default).

        Raises: RequestError where the model cannot do what is asked.
        """
        if thinking is None or self.reasons == "asked":
            return self.reasons == "always" if thinking is None else thinking
        if thinking == (self.reasons == "always"):
            return thinking
        raise RequestError(
            f"thinking cannot be {'on' if thinking else 'off'} with the {self.name} template",
            param="thinking",
            code="unsupported_value",
            wanted=f"{not thinking} or nothing: these models {self.reasons} reason",
        )

    def output_format(
        self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...], *, reads_tools: bool
    ) -> OutputFormat:
        """How to read the answer to `prompt_ids`; `reads_tools` where the request offers tools."""
        splits = self.reasons != "never"
        is_inside = splits and _ends_inside_reasoning(tokenizer, prompt_ids)
        return OutputFormat(
            splits_reasoning=splits,
            starts_inside=is_inside,
            opens_reasoning=self.reasons == "always"
            and prompt_ids[-1] == tokenizer.special_ids.get(ASSISTANT),
            tools=self.tool_format if reads_tools else None,
        )


_V3 = V3Style(between_results="")
_V3_0324 = V3Style(closes_user=True)
_R1 = V3Style(drops_reasoning="answers", opens_reasoning=True, between_results="")
_DISTILL = V3Style(drops_reasoning="answers", opens_reasoning=True, one_system=True)


def _fenced(name: str, style: V3Style, reasons: Literal["never", "always"]) -> ChatTemplate:
    return ChatTemplate(name=name, family="v3", reasons=reasons, tool_format="fenced", style=style)


TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template
    for template in (
        ChatTemplate(name="deepseek-v2", family="plain"),
        ChatTemplate(name="deepseek-coder-v2", family="plain"),
        _fenced("deepseek-v2.5", V3Style(one_system=True), "never"),
        _fenced("deepseek-v3", _V3, "never"),
        _fenced("deepseek-v3-0324", _V3_0324, "never"),
        _fenced("deepseek-r1", _R1, "always"),
        _fenced("deepseek-r1-0528", replace(_V3_0324, drops_reasoning="any"), "always"),
        _fenced("deepseek-r1-distill", _DISTILL, "always"),  # on Qwen2 and on Llama
        ChatTemplate(name="deepseek-v3.1", family="v3.1", reasons="asked", tool_format="bare"),
        ChatTemplate(name="plain", family="plain"),
    )
}
UNKNOWN = ChatTemplate(name="unknown", family="unknown")


def choose_template(
    tokenizer_config: Mapping[str, object], name: str | None = None
) -> ChatTemplate:
    """The template called `name`, or the one that the checkpoint's own chat template is.

    A checkpoint without a chat template gets the one that its control tokens fit (`deepseek-v3.1`
    with `<think>`, `deepseek-v3` without), or `plain`; one with a template that is none of
    DeepSeek's gets `unknown`, with which chat is refused and completions work.
    Raises: ConfigError for an unknown name.
    """
    if name is not None:
        if name not in TEMPLATES:
            wanted = ", ".join(TEMPLATES)
            raise ConfigError("chat template", found=repr(name), wanted=f"one of {wanted}")
        return TEMPLATES[name]
    jinja = _jinja(tokenizer_config.get("chat_template"))
    if not jinja:
        return TEMPLATES[_by_tokens(tokenizer_config.get("added_tokens_decoder"))]
    return _recognise(jinja)


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


def _recognise(jinja: str) -> ChatTemplate:
    """Which of DeepSeek's a checkpoint's own template is, by what only that one holds."""
    if ASSISTANT not in jinja:
        is_v2 = "'User: '" in jinja and "'Assistant:'" in jinja
        return TEMPLATES["deepseek-v2"] if is_v2 else UNKNOWN
    has_end = END_THINK in jinja
    if has_end and "thinking" in jinja:
        return TEMPLATES["deepseek-v3.1"]
    if "is_last_user" in jinja:
        return TEMPLATES["deepseek-r1-0528" if has_end else "deepseek-v3-0324"]
    is_first = "is_first_sp" not in jinja  # V2.5's, which the distillations inherit
    if not has_end and THINK not in jinja:
        return TEMPLATES["deepseek-v2.5" if is_first else "deepseek-v3"]
    found = TEMPLATES["deepseek-r1-distill" if is_first else "deepseek-r1"]
    if THINK in jinja:
        return found
    # At first it was left to the model to open its reasoning.
    return replace(found, style=replace(found.style, opens_reasoning=False))


def _jinja(raw: object) -> str:
    """The template's text; of several named ones, the default."""
    if isinstance(raw, list):
        named = {
            entry.get("name"): entry.get("template") for entry in raw if isinstance(entry, dict)
        }
        raw = named.get("default")
    return raw if isinstance(raw, str) else ""


def _by_tokens(added: object) -> str:
    """The template whose control tokens are among transformers' `added_tokens_decoder`."""
    entries = added.values() if isinstance(added, dict) else ()
    tokens = {entry.get("content") for entry in entries if isinstance(entry, dict)}
    if not {USER, ASSISTANT} <= tokens:
        return "plain"
    return "deepseek-v3.1" if {THINK, END_THINK} <= tokens else "deepseek-v3"


def _ends_inside_reasoning(tokenizer: Tokenizer, prompt_ids: tuple[int, ...]) -> bool:
    """Whether the prompt has opened reasoning and not closed it. User text cannot pretend so:
    it holds no control ids."""
    start, end = (tokenizer.special_ids.get(marker) for marker in (THINK, END_THINK))
    if start is None or end is None:  # spelled as text, at the very end of the prompt
        return tokenizer.decode(prompt_ids[-64:]).rstrip().endswith(THINK)
    for token_id in reversed(prompt_ids):
        if token_id in (start, end):
            return token_id == start
    return False
