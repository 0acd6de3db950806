"""What a request to /v1/messages may say. Blocks of content are read one by one: `translate.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^\S+$")]


class Message(Struct, frozen=True):
    """One turn: text, or blocks."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CacheControl(Struct, frozen=True):
    """`cache_control`: honoured by caching every prefix, marked or not, for as long as it fits."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Struct, frozen=True):
    """Text."""

    type: str
    text: str
    cache_control: CacheControl | None = None


class ThinkingBlock(Struct, frozen=True):
    """Reasoning of an earlier answer; the templates drop it. Signatures say nothing here."""

    type: str
    thinking: str
    signature: str = ""


class RedactedBlock(Struct, frozen=True):
    """Reasoning that another server hid: nothing that a model could read."""

    type: str
    data: str = ""


class ToolUseBlock(Struct, frozen=True):
    """A call that an earlier answer made. What `arguments_flaw` said the model is not told."""

    type: str
    id: str
    name: Name
    input: dict[str, Any]
    arguments_flaw: Literal["repaired", "invalid"] | None = None
    cache_control: CacheControl | None = None


class ToolResultBlock(Struct, frozen=True):
    """What a call gave."""

    type: str
    tool_use_id: str
    content: str | list[dict[str, Any]] = ""
    is_error: bool = False
    cache_control: CacheControl | None = None


class Tool(Struct, frozen=True):
    """A function that the model may call. `eager_input_streaming`: a stream has its arguments as
    the model writes them, JSON or not; else in one piece, when they are known to be."""

    name: Name
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Struct, frozen=True):
    """Whether tools may or must be called, which, and how many at once."""

    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Struct, frozen=True):
    """Reasoning; adaptive: where the model can. `display` omitted: it is not shown."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(Struct, frozen=True):
    """`output_config.format`."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, frozen=True):
    """`effort`: the models have no degrees, and the answer says so."""

    format: Format | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Struct, frozen=True):
    """`user_id` is unused by design, like OpenAI's `user`."""

    user_id: str | None = None


class Edit(Struct, frozen=True):
    """An edit of the conversation. Only the one that the templates make by themselves is taken."""

    type: str
    keep: Any = None


class ContextManagement(Struct, frozen=True):
    """`context_management`."""

    edits: list[Edit] = []


class CountRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""

    messages: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    metadata: Metadata | None = None
