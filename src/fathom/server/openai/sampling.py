"""From the fields of a request to `SamplingParams`, which says itself whether they are right."""

from __future__ import annotations

from fathom.core.types import MAX_BAD_LENGTH, MAX_BAD_SEQUENCES, SamplingParams
from fathom.errors import RequestError, not_valid
from fathom.server.job import Ask
from fathom.server.limits import check_name
from fathom.server.openai.schema import ChatRequest, CompletionRequest, Sampling
from fathom.server.openai.structured import form_of
from fathom.text.tokenizer import Tokenizer

_MAX_TOKEN_ID_DIGITS = 10
_CHAT_NAMES = {"logprobs": "top_logprobs"}
_COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions


def sampling_params(ask: Ask, request: ChatRequest | CompletionRequest) -> SamplingParams:
    """The request's sampling, validated; the checkpoint says how tokens are chosen otherwise.
    `max_tokens` None means up to the context.

    Raises: RequestError that names the field.
    """
    _check_common(request)
    return ask.sampling(
        {} if isinstance(request, CompletionRequest) else _CHAT_NAMES,
        request,
        max_tokens=_max_tokens(request),
        logprobs=_num_logprobs(request),
        prompt_logprobs=_num_prompt_logprobs(request),
        logit_bias=_logit_bias(request.logit_bias or {}),
        bad_token_ids=_bad_token_ids(request.bad_words or [], ask.model.tokenizer),
        structured_outputs=form_of(request),
    )


def _check_common(request: Sampling) -> None:
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "stream_options is for streams", param="stream_options", fix="set stream to true"
        )
    for name in ("request_id", "cache_salt"):
        value = getattr(request, name)
        if value is not None:
            check_name(name, value)
    if request.stream and request.prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs does not go with stream",
            param="prompt_logprobs",
            code="unsupported_value",
            fix="set stream to false",
        )


def _max_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        if request.max_tokens == 0 and request.echo:
            return 1  # scores the prompt; the one token is dropped from the answer
        return _COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            "max_tokens and max_completion_tokens differ",
            param="max_completion_tokens",
            found=f"{old} and {new}",
            fix="send one of them",
        )
    return old if new is None else new


def _num_logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    if request.top_logprobs and not request.logprobs:
        raise RequestError(
            "top_logprobs needs logprobs", param="top_logprobs", fix="set logprobs to true"
        )
    return (request.top_logprobs or 0) if request.logprobs else None


def _num_prompt_logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """Echoed text is scored like the answer."""
    echoed = request.logprobs if isinstance(request, CompletionRequest) and request.echo else None
    if echoed is not None and request.stream:
        raise RequestError(
            "logprobs of an echoed prompt do not go with stream",
            param="logprobs",
            code="unsupported_value",
            fix="set stream or echo to false",
        )
    asked = [count for count in (echoed, request.prompt_logprobs) if count is not None]
    return max(asked, default=None)


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    """Token ids are the keys: JSON has no whole numbers there."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_TOKEN_ID_DIGITS):
            raise not_valid("logit_bias", found=repr(key[:40]), wanted="token ids as keys")
    return {int(key): value for key, value in bias.items()}


def _bad_token_ids(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The words as a text begins with them, and as they stand after a space."""
    if len(words) > MAX_BAD_SEQUENCES // 2 or not all(words):
        raise not_valid(
            "bad_words",
            found=f"{len(words)} of them" if all(words) else "an empty one",
            wanted=f"at most {MAX_BAD_SEQUENCES // 2}, none of them empty",
        )
    told = [tokenizer.encode(f"{before}{word}") for word in words for before in ("", " ")]
    if any(len(ids) > MAX_BAD_LENGTH for ids in told):
        raise not_valid("bad_words", wanted=f"words of at most {MAX_BAD_LENGTH} tokens")
    return tuple(dict.fromkeys(told))
