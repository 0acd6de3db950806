"""POST /v1/completions: text in, text out, any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from msgspec import UNSET

from fathom.engine.requests import GenerateRequest
from fathom.errors import RequestError, not_valid
from fathom.server.answer import Choice
from fathom.server.conversation import fit_context, last_ids, limited
from fathom.server.exchange import Exchange
from fathom.server.job import Ask, Job, answer
from fathom.server.openai.reply import OpenAIReply
from fathom.server.openai.sampling import sampling_params
from fathom.server.openai.schema import CompletionRequest
from fathom.server.openai.wire import (
    Response,
    TextChoice,
    prompt_logprob_rows,
    text_logprobs,
)
from fathom.server.state import ServerState
from fathom.server.thinking import one_meaning
from fathom.text.delta import Delta, TokenLogprob
from fathom.text.prompt import encode_infill, encode_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Job[CompletionRequest]):
    """Prompts, with an echo for each."""

    echoes: tuple[str, ...]
    tokenizer: Tokenizer


async def completions(state: ServerState, exchange: Exchange) -> None:
    """Continue one or several prompts, whole or as a stream."""
    await answer(state, exchange, _prepare, _Reply)


def _prepare(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request = ask.read(CompletionRequest, "openai", "completions")
    model = ask.model
    model.check_name(request.model)
    params = sampling_params(ask, request)
    prompts = _prompts(request.prompt)
    ask.config.check_sequences(len(prompts), request.n)
    budget = one_meaning({}, {"thinking_token_budget": request.thinking_token_budget}).budget
    name = f"cmpl-{request.request_id or uuid4().hex}"
    generates = []
    for number, prompt in enumerate(prompts):
        room, kept = model.plan.max_model_len, request.truncate_prompt_tokens
        ids = last_ids(_ids(request, prompt, model.tokenizer), kept, params, room)
        format = model.template.output_format(model.tokenizer, ids, reads_tools=False)
        sampling = limited(params, budget, model, format)
        generates.append(
            GenerateRequest(
                id=f"{name}-{number}",
                prompt_ids=ids,
                sampling=fit_context(sampling, len(ids), room),
                cache_salt=request.cache_salt or "",
                priority=request.priority,
            )
        )
    echoes = [_echo(prompt, model.tokenizer) if request.echo else "" for prompt in prompts]
    return _Job.of(ask, request, name, generates, echoes=tuple(echoes), tokenizer=model.tokenizer)


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One prompt or several. Raises: RequestError for none, too many, or a mixture."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    several = [item for item in prompt if not isinstance(item, int)]
    if ids or len({type(item) for item in several}) != 1:
        raise not_valid(
            "prompt",
            found="an empty list" if not prompt else "a mixture",
            wanted="a string, token ids, or a list of only one of these",
        )
    return several


def _ids(
    request: CompletionRequest, prompt: str | list[int], tokenizer: Tokenizer
) -> tuple[int, ...]:
    bos = request.add_special_tokens
    if request.truncate_prompt_tokens is not None and (request.suffix or request.echo):
        raise RequestError(
            "truncate_prompt_tokens does not go with suffix or echo",
            param="truncate_prompt_tokens",
            code="unsupported_value",
        )
    if not request.suffix:
        return encode_prompt(tokenizer, prompt, add_special_tokens=bos)
    if request.echo:
        raise RequestError(
            "echo does not go with suffix",
            param="echo",
            code="unsupported_value",
            fix="leave it out",
        )
    return encode_infill(tokenizer, prompt, request.suffix, add_special_tokens=bos)


def _echo(prompt: str | list[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class _Reply(OpenAIReply[_Job]):
    """An answer, from its deltas."""

    kind = chunk_kind = "text_completion"

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._offsets: dict[int, int] = {}

    def shown(self, delta: Delta) -> Delta:
        """The delta without the one token that is generated where only scores are wanted."""
        if self._job.request.max_tokens != 0:
            return delta
        return Delta(
            index=delta.index,
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=None if delta.finish_reason is None else "length",
            num_cached=delta.num_cached,
        )

    def whole(self) -> Response:
        """All choices of all prompts."""
        return self._all(
            [
                self._choice(number, index, of_prompt)
                for number, of_prompt in enumerate(self._choices)
                for index in range(len(of_prompt))
            ]
        )

    def _choice(self, number: int, index: int, of_prompt: list[Choice]) -> TextChoice:
        """Choice `index` of prompt `number`. The prompt's scores came with its first choice."""
        job, request, choice = self._job, self._job.request, of_prompt[index]
        ids, scores = job.generates[number].prompt_ids, of_prompt[0].prompt_logprobs
        rows, first = choice.logprobs, None
        if request.echo:
            rows = [*scores, *rows]
            first = ids[0], job.tokenizer.token_text(ids[0])
        return TextChoice(
            index=number * request.n + index,
            text=job.echoes[number] + choice.text,
            logprobs=self._scores(rows, first=first),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            prompt_logprobs=UNSET
            if request.prompt_logprobs is None
            else prompt_logprob_rows(scores),
            token_ids=choice.token_ids if request.return_token_ids else UNSET,
            prompt_token_ids=ids if request.return_token_ids else UNSET,
        )

    def _scores(self, rows: Sequence[TokenLogprob], **more: Any) -> dict[str, Any] | None:
        request = self._job.request
        if request.logprobs is None:
            return None
        as_ids = request.return_tokens_as_token_ids
        return text_logprobs(rows, request.logprobs, as_ids=as_ids, **more)

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta of prompt `number`."""
        job, request = self._job, self._job.request
        index = number * request.n + delta.index
        is_first = index not in self._offsets
        offset = self._offsets.setdefault(index, len(job.echoes[number]))
        text = (job.echoes[number] if is_first else "") + delta.text
        shows_ids = request.return_token_ids and bool(delta.token_ids)
        if not (text or delta.finish_reason or delta.logprobs or shows_ids):
            return []
        self._offsets[index] += sum(len(row.token) for row in delta.logprobs)
        choice = TextChoice(
            index=index,
            text=text,
            logprobs=self._scores(delta.logprobs, offset=offset) if delta.logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if request.return_token_ids else UNSET,
            prompt_token_ids=job.generates[number].prompt_ids
            if request.return_token_ids and is_first
            else UNSET,
        )
        return [self._event(choice)]
