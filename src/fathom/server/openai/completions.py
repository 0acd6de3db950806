"""POST /v1/completions: text in, text out, any number of prompts."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import uuid4

from msgspec import UNSET, json

from fathom.engine.requests import GenerateRequest
from fathom.errors import RequestError
from fathom.server.answer import Choice
from fathom.server.conversation import fit_context, last_ids, limited
from fathom.server.exchange import Exchange
from fathom.server.generation import News
from fathom.server.job import Ask, answer
from fathom.server.openai.job import Chunks, OpenAIJob
from fathom.server.openai.refused import OF_COMPLETION
from fathom.server.openai.responses import (
    TextChoice,
    prompt_logprob_rows,
    text_logprobs,
    usage,
)
from fathom.server.openai.sampling import sampling_params
from fathom.server.openai.schema import CompletionRequest
from fathom.server.state import ServerState
from fathom.server.thinking import one_meaning
from fathom.text.delta import Delta, FinishReason
from fathom.text.prompt import encode_infill, encode_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(OpenAIJob[CompletionRequest]):
    """Prompts, with an echo for each."""

    kind = chunk_kind = "text_completion"

    echoes: tuple[str, ...]
    tokenizer: Tokenizer

    def wanted(self, delta: Delta) -> Delta:
        """The delta without the one token that is generated where only scores are wanted."""
        if self.request.max_tokens != 0:
            return delta
        end: FinishReason | None = None if delta.finish_reason is None else "length"
        return Delta(
            index=delta.index,
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=end,
            num_cached=delta.num_cached,
        )


async def completions(state: ServerState, exchange: Exchange) -> None:
    """Continue one or several prompts, whole or as a stream."""
    await answer(state, exchange, _prepare, _whole, _Chunks)


def _prepare(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(CompletionRequest, OF_COMPLETION), ask.model
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
    return _Job(
        request=request,
        generates=tuple(generates),
        echoes=tuple(echoes),
        id=name,
        created_s=int(time.time()),
        model_name=request.model or model.name,
        is_stream=request.stream,
        warnings=tuple(ask.warnings),
        tokenizer=model.tokenizer,
    )


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One prompt or several. Raises: RequestError for none, too many, or a mixture."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    several = [item for item in prompt if not isinstance(item, int)]
    if ids or len({type(item) for item in several}) != 1:
        raise RequestError(
            "prompt is not valid",
            param="prompt",
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


async def _whole(job: _Job, exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    num_choices = job.request.n
    choices = [[Choice() for _ in range(num_choices)] for _ in job.generates]
    tally = job.tally()
    async for number, deltas in news:
        for delta in deltas:
            kept = job.wanted(delta)
            tally.add(number, kept)
            choices[number][delta.index].add(kept)
    response = job.response(
        job.kind,
        [
            _choice(job, number, index, of_prompt)
            for number, of_prompt in enumerate(choices)
            for index in range(num_choices)
        ],
        usage=usage(tally.counts()),
        **job.said(),
    )
    await exchange.respond(200, json.encode(response))


def _choice(job: _Job, number: int, index: int, of_prompt: list[Choice]) -> TextChoice:
    """Choice `index` of prompt `number`. The prompt's scores came with its first choice."""
    request, choice = job.request, of_prompt[index]
    ids = job.generates[number].prompt_ids
    scores = of_prompt[0].prompt_logprobs
    logprobs = None
    if request.logprobs is not None:
        rows, first = choice.logprobs, None
        if request.echo:
            rows = [*scores, *rows]
            first = ids[0], job.tokenizer.token_text(ids[0])
        logprobs = text_logprobs(
            rows, request.logprobs, first=first, as_ids=request.return_tokens_as_token_ids
        )
    return TextChoice(
        index=number * request.n + index,
        text=job.echoes[number] + choice.text,
        logprobs=logprobs,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        prompt_logprobs=UNSET if request.prompt_logprobs is None else prompt_logprob_rows(scores),
        token_ids=choice.token_ids if request.return_token_ids else UNSET,
        prompt_token_ids=ids if request.return_token_ids else UNSET,
    )


class _Chunks(Chunks[_Job]):
    """A stream's events, from its deltas."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._offsets: dict[int, int] = {}

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta of prompt `number`."""
        job, request = self._job, self._job.request
        delta = job.wanted(delta)
        self._tally.add(number, delta)
        index = number * request.n + delta.index
        is_first = index not in self._offsets
        offset = self._offsets.setdefault(index, len(job.echoes[number]))
        text = (job.echoes[number] if is_first else "") + delta.text
        shows_ids = request.return_token_ids and bool(delta.token_ids)
        if not (text or delta.finish_reason or delta.logprobs or shows_ids):
            return []
        logprobs = None
        if request.logprobs is not None and delta.logprobs:
            logprobs = text_logprobs(
                delta.logprobs,
                request.logprobs,
                offset=offset,
                as_ids=request.return_tokens_as_token_ids,
            )
            self._offsets[index] += sum(len(row.token) for row in delta.logprobs)
        choice = TextChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if request.return_token_ids else UNSET,
            prompt_token_ids=job.generates[number].prompt_ids
            if request.return_token_ids and is_first
            else UNSET,
        )
        return [self._event(choice)]
