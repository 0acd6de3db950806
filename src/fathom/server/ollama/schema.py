"""What a request to /api/chat and /api/generate may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Think = bool | Literal["low", "medium", "high"]


class Options(Struct, frozen=True):
    """`options`. `num_ctx` is what the client needs; the context is the server's."""

    num_ctx: Annotated[int, Meta(ge=1)] | None = None
    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Function(Struct, frozen=True):
    """What was called."""

    name: str
    arguments: dict[str, Any]
    index: int | None = None


class ToolCall(Struct, frozen=True):
    """A call that an earlier answer made. What `arguments_flaw` said the model is not told."""

    function: Function
    id: str | None = None
    type: Literal["function"] | None = None
    arguments_flaw: Literal["repaired", "invalid"] | None = None


class Message(Struct, frozen=True):
    """One turn. Earlier thinking is dropped by the templates."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Common(Struct, frozen=True, kw_only=True):
    """What both routes share. `keep_alive`: the model stays loaded longer than anybody asks."""

    model: str
    stream: bool = True
    think: Think | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    logprobs: bool = False
    top_logprobs: int | None = None


class ChatRequest(Common, frozen=True, kw_only=True):
    """The body of POST /api/chat."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(Common, frozen=True, kw_only=True):
    """The body of POST /api/generate. `raw`: the prompt as it is, without a template."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False


class ShowRequest(Struct, frozen=True):
    """The body of POST /api/show."""

    model: str
