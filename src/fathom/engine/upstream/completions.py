"""A prompt of token ids as /v1/completions, and its events as those of an engine's sequences.

The answer comes as ids, so that it is read as if a fathom engine had given them: stop strings,
reasoning, tool calls and counts are found here, and what the upstream thinks is text is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from fathom.core.types import FinishReason, ReasoningLimit, Request, TokenEvent, TokenLogprobs
from fathom.engine.requests import GenerateRequest
from fathom.engine.upstream.kinds import Kind, form_fields, refused, sampling_fields
from fathom.engine.upstream.wire import message_of
from fathom.perf.http_stream import BrokenStream

PATH = "/v1/completions"
_ID = "token_id:"
_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "length": "length", "repetition": "repetition"
}  # fmt: skip


class _Logprobs(Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens_details: _Details | None = None


class _Event(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


def body_of(request: GenerateRequest, kind: Kind, model: str) -> dict[str, Any]:
    """The request as the upstream gets it. Stop strings are not sent: they are found here.

    Raises: RequestError for what cannot be asked of it.
    """
    sampling = request.sampling
    limit = sampling.reasoning_limit
    if limit is not None and not kind.has_budget:
        raise refused("thinking_token_budget", kind)
    told = {
        "model": model,
        "prompt": request.prompt_ids,
        **sampling_fields(request, kind),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if limit is not None:
        told["thinking_token_budget"] = limit.num_tokens
    if sampling.logprobs is not None:
        if not kind.names_ids:
            raise refused("logprobs", kind)
        told |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    asked = request.asked
    if asked is None:
        return told
    if asked.tools is not None and asked.tools.must_call:
        raise refused("tool_choice", kind, "calls cannot be forced through /v1/completions")
    if asked.tools is not None and any(tool.is_strict for tool in asked.tools.tools):
        raise refused("tools.function.strict", kind, "no schema holds through /v1/completions")
    if asked.form is not None:
        if asked.reasoning != "none":
            why = "a form would bind the reasoning that comes first, too"
            raise refused(asked.form.field, kind, why, "ask for no reasoning")
        told |= form_fields(asked.form, kind)
    return told


class CompletionReader:
    """Events of the upstream in, events of sequences out, by `feed`.

    The last event of a choice waits for the usage, which comes after it and knows what was cached.
    """

    def __init__(self, sequences: tuple[Request, ...], feed: Callable[[TokenEvent], None]) -> None:
        first = sequences[0]
        self._ids = tuple(sequence.id for sequence in sequences)
        self._num_scores, self._feed = first.sampling.logprobs, feed
        self._stop_ids = frozenset(first.sampling.stop_token_ids)
        self._end_ids = self._stop_ids | frozenset(first.eos_token_ids)
        self._limit = first.sampling.reasoning_limit
        self._outputs: list[list[int]] = [[] for _ in sequences]
        self._ends: dict[int, TokenEvent] = {}
        self._num_cached = 0
        self.has_news = False

    def event(self, raw: bytes) -> None:
        """One event. Raises: BrokenStream."""
        try:
            event = _DECODER.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BrokenStream(f"not an event of /v1/completions: {error}") from error
        if event.error is not None:
            raise BrokenStream(message_of(event.error)[0])
        for choice in event.choices:
            self._choice(choice)
        if event.usage is not None and event.usage.prompt_tokens_details is not None:
            self._num_cached = event.usage.prompt_tokens_details.cached_tokens or 0

    def finish(self) -> None:
        """The stream is over. Raises: BrokenStream where a choice is not."""
        if len(self._ends) < len(self._ids):
            raise BrokenStream("the answer has no end")
        for end in self._ends.values():
            self._feed(end._replace(num_cached=self._num_cached))

    def _choice(self, choice: _Choice) -> None:
        if not 0 <= choice.index < len(self._ids) or choice.index in self._ends:
            raise BrokenStream(f"an event of choice {choice.index}, which is not there")
        if choice.text and not choice.token_ids:
            raise BrokenStream(
                "text without its token ids; a proxy with --tokenizer needs an upstream that "
                "honours return_token_ids"
            )
        ids = tuple(choice.token_ids or ())
        if self._limit is not None:
            self._check_budget(self._limit, ids, self._outputs[choice.index])
        event = TokenEvent(
            id=self._ids[choice.index],
            token_ids=ids,
            logprobs=() if self._num_scores is None else self._scores(choice, ids),
            queued_s=None if self.has_news else 0.0,
        )
        self.has_news = True
        if choice.finish_reason is None:
            self._feed(event)
            return
        reason = _reason(choice.finish_reason)
        last: str | int | None = ids[-1] if ids else None
        if reason == "stop" and last not in self._end_ids:
            # The token that ended it was left out: none of these is silent.
            self._feed(event)
            event, last = TokenEvent(id=event.id), choice.stop_reason
        stop_id = last if isinstance(last, int) and last in self._stop_ids else None
        is_stop = reason == "stop"
        self._ends[choice.index] = event._replace(
            finish_reason=reason, stop_token_id=stop_id if is_stop else None
        )

    @staticmethod
    def _check_budget(limit: ReasoningLimit, ids: tuple[int, ...], output: list[int]) -> None:
        """Most servers ignore a field that they do not know, so this one is looked after."""
        for token in ids:
            if token != limit.end_id and limit.is_reached(output):
                raise BrokenStream("the upstream does not keep to thinking_token_budget")
            output.append(token)

    def _scores(self, choice: _Choice, ids: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        given = choice.logprobs or _Logprobs()
        if len(given.token_logprobs) < len(ids):
            raise BrokenStream("tokens without their logprobs")
        tops = given.top_logprobs or [None] * len(ids)
        return tuple(
            self._row(token, score, top or {})
            for token, score, top in zip(ids, given.token_logprobs, tops, strict=False)
        )

    def _row(self, token: int, score: float | None, top: dict[str, float]) -> TokenLogprobs:
        if not all(name.startswith(_ID) for name in top):
            raise BrokenStream("logprobs without token ids")
        rows = sorted(
            ((int(name[len(_ID) :]), value) for name, value in top.items()), key=lambda row: -row[1]
        )
        rank = next((place for place, row in enumerate(rows, 1) if row[0] == token), len(rows) + 1)
        return TokenLogprobs(token, score or 0.0, rank, tuple(rows[: self._num_scores]))


def _reason(name: str) -> FinishReason:
    reason = _REASONS.get(name)
    if reason is None:
        raise BrokenStream(f"the answer ended for the reason {name}")
    return reason
