"""What a request to /v1/responses may say, and its items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Status = Literal["in_progress", "completed", "incomplete"]
Name = Annotated[str, Meta(pattern=r"^\S+$")]


class Part(Struct, frozen=True):
    """A part of a message, of a result, or of reasoning. `logprobs` were said of an earlier answer;
    the model is not told."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str
    logprobs: list[dict[str, Any]] | None = None


class MessageItem(Struct, frozen=True, kw_only=True):
    """A turn."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Struct, frozen=True, kw_only=True):
    """A call that an earlier answer made. What `arguments_flaw` said the model is not told."""

    call_id: str
    name: Name
    arguments: str
    type: Literal["function_call"] = "function_call"
    id: str | None = None
    status: Status | None = None
    arguments_flaw: Literal["repaired", "invalid"] | None = None


class ResultItem(Struct, frozen=True, kw_only=True):
    """What a call gave."""

    call_id: str
    output: str | list[Part]
    type: Literal["function_call_output"] = "function_call_output"
    id: str | None = None
    status: Status | None = None


class ReasoningItem(Struct, frozen=True, kw_only=True):
    """Reasoning of an earlier answer; the templates drop it."""

    type: Literal["reasoning"] = "reasoning"
    content: list[Part] | None = None
    summary: list[Part] | None = None
    id: str | None = None
    status: Status | None = None


ITEMS: dict[str, type[Struct]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": ResultItem,
    "reasoning": ReasoningItem,
}


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(Struct, frozen=True):
    """`reasoning`. It is always given in full, whatever `summary` asks for."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class NamedTool(Struct, frozen=True):
    """`tool_choice`: the tool that must be called."""

    type: Literal["function"]
    name: str


class Format(Struct, frozen=True, omit_defaults=True):
    """`text.format`. The schema holds whether `strict` is said or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Text(Struct, frozen=True):
    """`text`."""

    format: Format | None = None


class CountRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/responses/input_tokens."""

    input: str | list[dict[str, Any]] = ""
    instructions: str | None = None
    model: str | None = None
    previous_response_id: str | None = None
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    text: Text | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    tools: list[Tool] | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = None


class ResponsesRequest(CountRequest, frozen=True, kw_only=True):
    """The body of POST /v1/responses. `prompt_cache_key`: equal prefixes are shared anyway."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool = False
    store: bool = True
    metadata: dict[str, str] | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] = []
    top_logprobs: int | None = None
    prompt_cache_key: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    user: str | None = None
    safety_identifier: str | None = None


class ItemsQuery(Struct, frozen=True):
    """The query of GET /v1/responses/{response_id}/input_items."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str = ""
