"""What an answer looks like on the wire: OpenAI's objects, with vLLM's and DeepSeek's extras."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Struct, UnsetType, json

from fathom.server.answer import Call, Counts
from fathom.text.delta import TokenLogprob, ToolCallDelta, TopToken

# JSON has no minus infinity; OpenAI writes this for it.
_LEAST_LOGPROB = -9999.0


class PromptDetails(Struct, frozen=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int


class CompletionDetails(Struct, frozen=True):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int


class Usage(Struct, frozen=True):
    """Token counts; the cache twice, in OpenAI's form and in DeepSeek's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


def usage(counts: Counts) -> Usage:
    """The counts of one response."""
    return Usage(
        prompt_tokens=counts.prompt,
        completion_tokens=counts.completion,
        total_tokens=counts.prompt + counts.completion,
        prompt_tokens_details=PromptDetails(counts.cached),
        completion_tokens_details=CompletionDetails(counts.reasoning),
        prompt_cache_hit_tokens=counts.cached,
        prompt_cache_miss_tokens=counts.prompt - counts.cached,
    )


class FunctionOut(Struct, frozen=True, omit_defaults=True):
    """Name and arguments of a call, or a piece of them."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallOut(Struct, frozen=True, omit_defaults=True):
    """A tool call, or a piece of one (with `index`, in streams).

    `arguments_flaw`: "repaired" or "invalid", where the model did not write JSON.
    """

    function: FunctionOut
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    arguments_flaw: str | UnsetType = UNSET


class MessageOut(Struct, frozen=True, omit_defaults=True):
    """The assistant's message, or a piece of it. Reasoning under both names that clients read."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One choice of a whole chat answer. `has_stray_markup`: some of its text is markup of calls
    that could not be read."""

    index: int
    message: MessageOut
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET
    has_stray_markup: bool | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """One choice in a chunk of a chat stream; the last says `has_stray_markup`."""

    index: int
    delta: MessageOut
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    has_stray_markup: bool | UnsetType = UNSET


class TextChoice(Struct, frozen=True):
    """One choice of a text completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[Any] | UnsetType = UNSET
    token_ids: list[int] | tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET


class Response(Struct, frozen=True):
    """The object around the choices, whole or a chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET
    prompt_logprobs: list[Any] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    thinking: dict[str, Any] | UnsetType = UNSET
    warnings: tuple[str, ...] | UnsetType = UNSET


def event(payload: Struct) -> bytes:
    """A server-sent event with a JSON object."""
    return b"data: " + json.encode(payload) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def tool_call(call: Call) -> ToolCallOut:
    """A whole tool call."""
    function = FunctionOut(name=call.name, arguments=call.arguments)
    return ToolCallOut(function, id=call.id, type="function", arguments_flaw=call.flaw or UNSET)


def tool_call_piece(call: ToolCallDelta) -> ToolCallOut:
    """A tool call's news for a stream: id, type and name come with its first piece."""
    flaw = call.flaw or UNSET
    if call.id is None:
        function = FunctionOut(arguments=call.arguments)
        return ToolCallOut(function, index=call.index, arguments_flaw=flaw)
    function = FunctionOut(name=call.name or "", arguments=call.arguments)
    return ToolCallOut(function, call.index, call.id, "function", flaw)


def chat_logprobs(rows: Iterable[TokenLogprob], num_top: int) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    return {
        "content": [
            {**_token(row), "top_logprobs": [_token(top) for top in row.top[:num_top]]}
            for row in rows
        ],
        "refusal": None,
    }


def _token(row: TokenLogprob | TopToken) -> dict[str, Any]:
    return {
        "token": row.token,
        "logprob": max(row.logprob, _LEAST_LOGPROB),
        "bytes": list(row.bytes),
    }


def text_logprobs(
    rows: Iterable[TokenLogprob],
    num_top: int,
    *,
    offset: int = 0,
    first: tuple[int, str] | None = None,
    as_ids: bool = False,
) -> dict[str, Any]:
    """`logprobs` of a text choice whose first row's token stands at character `offset`. `first`
    is a prompt's first token, which nothing scores. `as_ids` names tokens `token_id:ID`."""
    lists: dict[str, list[Any]] = {
        "text_offset": [],
        "token_logprobs": [],
        "tokens": [],
        "top_logprobs": [],
    }

    def name(row: TokenLogprob | TopToken) -> str:
        return f"token_id:{row.token_id}" if as_ids else _name(row)

    def add(text: str, name: str, logprob: float | None, top: dict[str, float] | None) -> None:
        nonlocal offset
        lists["text_offset"].append(offset)
        lists["token_logprobs"].append(logprob)
        lists["tokens"].append(name)
        lists["top_logprobs"].append(top)
        offset += len(text)

    if first is not None:
        token_id, text = first
        add(text, f"token_id:{token_id}" if as_ids else text, None, None)
    for row in rows:
        scored = max(row.logprob, _LEAST_LOGPROB)
        top = {name(one): max(one.logprob, _LEAST_LOGPROB) for one in row.top[:num_top]}
        add(row.token, name(row), scored, {**top, name(row): scored})
    return lists


def _name(row: TokenLogprob | TopToken) -> str:
    """A token as a key: part of a character by its bytes, as OpenAI writes it."""
    if "\ufffd" in row.token:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in row.bytes)
    return row.token


def prompt_logprob_rows(rows: Iterable[TokenLogprob]) -> list[Any]:
    """vLLM's `prompt_logprobs`: null for the first token, then a mapping from token ids."""
    told: list[Any] = [None]
    for row in rows:
        ranks = {
            top.token_id: (top.logprob, rank, top.token) for rank, top in enumerate(row.top, 1)
        }
        ranks[row.token_id] = (row.logprob, row.rank, row.token)
        told.append(
            {
                str(token_id): {
                    "logprob": max(logprob, _LEAST_LOGPROB),
                    "rank": rank,
                    "decoded_token": token,
                }
                for token_id, (logprob, rank, token) in ranks.items()
            }
        )
    return told
