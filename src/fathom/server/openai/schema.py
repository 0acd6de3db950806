"""What a request may say: one struct a JSON object, with the names of OpenAI, vLLM and SGLang.

Only fields that are honoured are here. Those that are known but not honoured are in `refused.toml`;
anything else is an error that names the nearest field (`decode.py`). Messages are checked by
`text.messages`, values of sampling fields by `SamplingParams`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import asdict


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`stream_options`: usage at the end of a stream, or in each of its chunks."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class TemplateKwargs(Struct, frozen=True, forbid_unknown_fields=True):
    """`chat_template_kwargs`: the two names under which clients ask for reasoning."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


def spellings(kwargs: TemplateKwargs | None) -> dict[str, bool | None]:
    """What they ask, by the paths of their fields."""
    told = {} if kwargs is None else asdict(kwargs)
    return {f"chat_template_kwargs.{name}": value for name, value in told.items()}


class Thinking(Struct, frozen=True, forbid_unknown_fields=True):
    """`thinking`: DeepSeek's own way to ask for reasoning, with Anthropic's limit."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = None


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """`response_format.json_schema`. The schema holds whether `strict` is said or not."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True, forbid_unknown_fields=True):
    """`response_format`: OpenAI's, and vLLM's structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class Structured(Struct, frozen=True, forbid_unknown_fields=True):
    """`structured_outputs`: vLLM's, one of several forms."""

    json: dict[str, Any] | str | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


class Function(Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call; `parameters` is a JSON schema, shown to the model."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice.function`."""

    name: str


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice`: the tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and text completions share. None: the checkpoint's default, else the API's."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    repetition_detection: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    user: str | None = None
    safety_identifier: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None


class ChatRequest(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: TemplateKwargs | None = None
    thinking: Thinking | bool | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = None
    max_thinking_tokens: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    echo: bool = False
    include_reasoning: bool = True


class CompletionRequest(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    echo: bool = False
    logprobs: int | None = None
    thinking_token_budget: int | None = None
    add_special_tokens: bool = True


class TokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /tokenize: a text (`prompt`) or a conversation (`messages`)."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /detokenize."""

    tokens: list[int]
    model: str | None = None
    skip_special_tokens: bool = False
