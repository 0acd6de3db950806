"""What an answer looks like on the wire: OpenAI's objects, with vLLM's and DeepSeek's extras."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from fathom.server.answer import Call, Counts, flaw_of
from fathom.text.delta import TokenLogprob, ToolCallDelta, TopToken

# JSON has no minus infinity; OpenAI writes this for it.
_LEAST_LOGPROB = -9999.0


def usage(counts: Counts) -> dict[str, Any]:
    """The counts of one response; the cache twice, in OpenAI's form and in DeepSeek's."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        "prompt_cache_hit_tokens": counts.cached,
        "prompt_cache_miss_tokens": counts.prompt - counts.cached,
    }


class MessageOut(Struct, frozen=True, omit_defaults=True):
    """The assistant's message, or a piece of it. Reasoning under both names that clients read."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One choice of a chat: of a whole answer with its `message`, of a chunk with its `delta`.
    `has_stray_markup`: some of its text is markup."""

    index: int
    message: MessageOut | UnsetType = UNSET
    delta: MessageOut | UnsetType = UNSET
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET
    has_stray_markup: bool | UnsetType = UNSET


class TextChoice(Struct, frozen=True):
    """One choice of a text completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[Any] | UnsetType = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET


class Response(Struct, frozen=True):
    """The object around the choices, whole or a chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: dict[str, Any] | UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET
    prompt_logprobs: list[Any] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    thinking: dict[str, Any] | UnsetType = UNSET
    warnings: tuple[str, ...] | UnsetType = UNSET


def tool_call(call: Call) -> dict[str, Any]:
    """A whole tool call."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"function": function, "id": call.id, "type": "function", **flaw_of(call)}


def tool_call_piece(call: ToolCallDelta) -> dict[str, Any]:
    """A tool call's news for a stream: id, type and name come with its first piece."""
    function: dict[str, str] = {"arguments": call.arguments}
    if call.id is None:
        return {"function": function, "index": call.index, **flaw_of(call)}
    head = {"index": call.index, "id": call.id, "type": "function"}
    return {"function": {"name": call.name or "", **function}, **head, **flaw_of(call)}


def chat_logprobs(
    rows: Iterable[TokenLogprob], num_top: int, *, as_ids: bool = False
) -> dict[str, Any]:
    """`logprobs` of a chat choice. `as_ids` names tokens `token_id:ID`."""

    def one(row: TokenLogprob | TopToken) -> dict[str, Any]:
        return {
            "token": f"token_id:{row.token_id}" if as_ids else row.token,
            "logprob": max(row.logprob, _LEAST_LOGPROB),
            "bytes": list(row.bytes),
        }

    content = [{**one(row), "top_logprobs": [one(t) for t in row.top[:num_top]]} for row in rows]
    return {"content": content, "refusal": None}


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

    def name(row: TokenLogprob | TopToken) -> str:
        return f"token_id:{row.token_id}" if as_ids else _name(row)

    scored: list[tuple[str, str, float | None, dict[str, float] | None]] = []
    if first is not None:
        token_id, text = first
        scored.append((text, f"token_id:{token_id}" if as_ids else text, None, None))
    for row in rows:
        logprob = max(row.logprob, _LEAST_LOGPROB)
        top = {name(one): max(one.logprob, _LEAST_LOGPROB) for one in row.top[:num_top]}
        scored.append((row.token, name(row), logprob, {**top, name(row): logprob}))
    offsets = accumulate((len(text) for text, _, _, _ in scored), initial=offset)
    return {
        "text_offset": list(offsets)[:-1],
        "token_logprobs": [logprob for _, _, logprob, _ in scored],
        "tokens": [token for _, token, _, _ in scored],
        "top_logprobs": [top for _, _, _, top in scored],
    }


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
