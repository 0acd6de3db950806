"""A prompt of token ids as /v1/completions, and its events as those of an engine's sequences.

The answer comes as ids, so that it is read as if a fathom engine had given them: stop strings,
reasoning, tool calls and counts are found here, and what the upstream thinks is text is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from fathom.core.loop_guard import LoopGuard, LoopLimits
from fathom.core.types import FinishReason, Request, TokenEvent, TokenLogprobs
from fathom.engine.requests import GenerateRequest
from fathom.engine.upstream.failures import event_error
from fathom.engine.upstream.kinds import Kind, form_fields, refused, sampling_fields
from fathom.engine.upstream.wire import Usage
from fathom.perf.http_stream import BrokenStream
from fathom.text.grammar.asked import Asked
from fathom.text.tokenizer import Tokenizer

PATH = "/v1/completions"
_ID = "token_id:"
_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "length": "length", "repetition": "repetition"
}  # fmt: skip


class _Logprobs(Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Score(Struct):
    logprob: float
    rank: int


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[int, _Score] | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None  # SGLang's name for it


class _Event(Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


def body_of(
    request: GenerateRequest, kind: Kind, model: str, tokenizer: Tokenizer
) -> dict[str, Any]:
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
        if sampling.logprobs and not kind.names_ids:
            why = f"an upstream of kind {kind.name}, which names alternatives by their text"
            raise refused("logprobs", kind, why, "ask for those of the answer's own tokens alone")
        told |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    if sampling.prompt_logprobs is not None:
        if not kind.scores_prompts:
            raise refused("prompt_logprobs", kind)
        del told["stream_options"]  # which go with streams only, as these scores do not
        told |= {"prompt_logprobs": sampling.prompt_logprobs, "stream": False}
    return told if request.asked is None else told | _bound(request.asked, kind, tokenizer)


def _bound(asked: Asked, kind: Kind, tokenizer: Tokenizer) -> dict[str, Any]:
    """What binds the answer. /v1/completions knows neither calls nor reasoning, and has a form for
    all of the text: one with calls or after reasoning goes as a grammar with our markers in it."""
    form = asked.form if asked.reasoning == "none" else None
    if form is not None and asked.tools is None:
        return form_fields(form, kind)
    if kind.takes_lark:
        from fathom.text.grammar.build import lark_text

        return {"structured_outputs": {"grammar": lark_text(asked, tokenizer)}}
    why = f"an upstream of kind {kind.name}, whose grammars have no control tokens"
    if asked.tools is not None and asked.tools.must_call:
        raise refused("tool_choice", kind, why)
    if asked.tools is not None and any(tool.is_strict for tool in asked.tools.tools):
        raise refused("tools.function.strict", kind, why)
    if form is not None:
        return form_fields(form, kind)  # which leaves no room for calls
    field = asked.form.field if asked.form is not None else "tools"
    raise refused(field, kind, f"{why}: it would bind the reasoning too", "ask for no reasoning")


class CompletionReader:
    """Events of the upstream in, events of sequences out, by `feed`. A whole answer is one event.

    The last event of a choice waits for the usage, which comes after it and knows what was cached.
    An answer that loops by `loops` ends at once, whatever the upstream goes on to say.
    """

    def __init__(
        self,
        sequences: tuple[Request, ...],
        feed: Callable[[TokenEvent], None],
        loops: LoopLimits | None = None,
    ) -> None:
        first = sequences[0]
        self._ids = tuple(sequence.id for sequence in sequences)
        self._num_scores, self._feed = first.sampling.logprobs, feed
        self._prompt_ids, self._num_prompt = first.prompt_ids, first.sampling.prompt_logprobs
        self._stop_ids = frozenset(first.sampling.stop_token_ids)
        self._end_ids = self._stop_ids | frozenset(first.eos_token_ids)
        self._limit, self._min_tokens = first.sampling.reasoning_limit, first.sampling.min_tokens
        self._outputs: list[list[int]] = [[] for _ in sequences]
        self._guards = [None if loops is None else LoopGuard(loops) for _ in sequences]
        self._looped: set[int] = set()
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
            raise event_error(event.error)
        for choice in event.choices:
            self._choice(choice)
        if event.usage is not None:
            self._num_cached = event.usage.num_cached

    def finish(self) -> None:
        """The stream is over. Raises: BrokenStream where a choice is not."""
        if len(self._ends) + len(self._looped) < len(self._ids):
            raise BrokenStream("the answer has no end")
        for end in self._ends.values():
            self._feed(end._replace(num_cached=self._num_cached))

    def _choice(self, choice: _Choice) -> None:
        if not 0 <= choice.index < len(self._ids) or choice.index in self._ends:
            raise BrokenStream(f"an event of choice {choice.index}, which is not there")
        if choice.index in self._looped:
            return
        if choice.text and not choice.token_ids:
            raise BrokenStream(
                "text without its token ids; a proxy with --tokenizer needs an upstream that "
                "honours return_token_ids"
            )
        ids = tuple(choice.token_ids or ())
        num_looped = self._follow(choice.index, ids)
        event = TokenEvent(
            id=self._ids[choice.index],
            token_ids=ids,
            logprobs=() if self._num_scores is None else self._scores(choice, ids),
            prompt_logprobs=() if choice.index else self._prompt_scores(choice),
            queued_s=None if self.has_news else 0.0,
        )
        self.has_news = True
        if num_looped is not None and choice.finish_reason is None:
            self._looped.add(choice.index)
            ids, logprobs = ids[:num_looped], event.logprobs[:num_looped]
            self._feed(event._replace(token_ids=ids, logprobs=logprobs, finish_reason="repetition"))
            return
        if choice.finish_reason is None:
            self._feed(event)
            return
        reason = _reason(choice.finish_reason)
        last: str | int | None = ids[-1] if ids else None
        if reason == "stop" and last not in self._end_ids:
            # The token that ended it was left out: none of these is silent.
            self._feed(event)
            event, last = TokenEvent(id=event.id), choice.stop_reason or choice.matched_stop
        stop_id = last if isinstance(last, int) and last in self._stop_ids else None
        is_stop = reason == "stop"
        self._ends[choice.index] = event._replace(
            finish_reason=reason, stop_token_id=stop_id if is_stop else None
        )

    def _follow(self, index: int, ids: tuple[int, ...]) -> int | None:
        """How many of a choice's new tokens make it a loop; None where it is none.

        Raises: BrokenStream where the budget is not kept: most servers ignore unknown fields.
        """
        output, guard, limit = self._outputs[index], self._guards[index], self._limit
        for place, token in enumerate(ids, 1):
            if limit is not None and token != limit.end_id and limit.is_reached(output):
                raise BrokenStream("the upstream does not keep to thinking_token_budget")
            output.append(token)
            is_loop = guard is not None and guard.is_loop(output, 0)
            if is_loop and len(output) >= self._min_tokens:
                return place
        return None

    def _scores(self, choice: _Choice, ids: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        given = choice.logprobs or _Logprobs()
        if len(given.token_logprobs) < len(ids):
            raise BrokenStream("tokens without their logprobs")
        tops = given.top_logprobs or [None] * len(ids)
        return tuple(
            self._row(token, score, top or {})
            for token, score, top in zip(ids, given.token_logprobs, tops, strict=False)
        )

    def _prompt_scores(self, choice: _Choice) -> tuple[TokenLogprobs, ...]:
        """Of every token but the first, which nothing comes before."""
        if self._num_prompt is None:
            return ()
        told = []
        rows = (choice.prompt_logprobs or [])[1:]
        for token, scores in zip(self._prompt_ids[1:], rows, strict=False):
            own = (scores or {}).get(token)
            if own is None:
                break
            best = sorted((scores or {}).items(), key=lambda item: item[1].rank)
            top = tuple((other, score.logprob) for other, score in best[: self._num_prompt])
            told.append(TokenLogprobs(token, own.logprob, own.rank, top))
        if len(told) + 1 != len(self._prompt_ids):
            raise BrokenStream("a prompt without its logprobs")
        return tuple(told)

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
