"""POST /generate, GET /get_model_info, POST /flush_cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from msgspec import json

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest as Generate
from fathom.errors import RequestError, not_valid
from fathom.server.answer import Choice
from fathom.server.conversation import fit_context
from fathom.server.envelope import sse
from fathom.server.exchange import Exchange
from fathom.server.forms import one_form, sglang_forms
from fathom.server.job import Ask, Job, Reply, answer
from fathom.server.limits import check_name, renaming
from fathom.server.sglang.schema import GenerateRequest, SamplingFields
from fathom.server.state import ServerState
from fathom.text.delta import Delta, TokenLogprob, TopToken
from fathom.text.prompt import encode_prompt
from fathom.text.tokenizer import Tokenizer

T = TypeVar("T")
# What may be one for all prompts, or one for each of them.
_OF_PROMPTS = (
    *("sampling_params", "rid", "return_logprob", "logprob_start_len", "top_logprobs_num"),
    "extra_key",
)


def _names(params: str = "sampling_params", scores: str = "top_logprobs_num") -> dict[str, str]:
    """What this dialect calls fields of `SamplingParams`."""
    return {
        **{name: f"{params}.{name}" for name in SamplingFields.__struct_fields__},
        "max_tokens": f"{params}.max_new_tokens",
        "min_tokens": f"{params}.min_new_tokens",
        "seed": f"{params}.sampling_seed",
        "logprobs": scores,
        "prompt_logprobs": scores,
        "request_id": "rid",
    }


async def generate(state: ServerState, exchange: Exchange) -> None:
    """Continue one or several prompts, whole or as a stream."""
    await answer(state, exchange, _prepare, _Reply)


async def model_info(state: ServerState, exchange: Exchange) -> None:
    """What is served."""
    _, model = state.require()
    path = model.plan.model_path
    told = {"model_path": path, "tokenizer_path": path, "is_generation": True}
    await exchange.give({**told, "served_model_name": model.name})


async def flush_cache(state: ServerState, exchange: Exchange) -> None:
    """Forget every cached prefix that no running request uses, before any later request."""
    engine, _ = state.require()
    engine.flush_cache()
    await exchange.respond(200, b"Cache flushed.\n", [(b"content-type", b"text/plain")])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """Which tokens of a prompt and its answer are scored, and how many others beside each."""

    start: int
    num_top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Job[GenerateRequest]):
    """Prompts, the scores that are wanted of each, and what says the texts of their tokens."""

    scores: tuple[_Scores | None, ...]
    tokenizer: Tokenizer


def _prepare(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(GenerateRequest, "sglang"), ask.model
    prompts = _prompts(request)
    ids = _ids(request, len(prompts))
    param = "text" if request.text is not None else "input_ids"
    generates: list[Generate] = []
    scores = []
    for number, prompt in enumerate(prompts):
        at = {name: _place(request, name, number) for name in _OF_PROMPTS}
        scores.append(_scores(request, number, at["top_logprobs_num"]))
        params = _sampling(ask, _of(request.sampling_params, number), scores[-1], at)
        if not number:
            with renaming(_names()):
                ask.config.check_sequences(len(prompts), params.n, param)
        elif params.n != generates[0].sampling.n:
            name = f"{at['sampling_params']}.n"
            raise not_valid(name, found=str(params.n), wanted="the same for every prompt")
        with renaming(_names(at["sampling_params"])):
            prompt_ids = encode_prompt(model.tokenizer, prompt, param=param)
            room = model.plan.max_model_len
            generates.append(
                Generate(
                    id=ids[number],
                    prompt_ids=prompt_ids,
                    sampling=fit_context(params, len(prompt_ids), room, param),
                    cache_salt=_of(request.extra_key or "", number),
                    priority=request.priority or 0,
                )
            )
    more = {"scores": tuple(scores), "tokenizer": model.tokenizer}
    return _Job.of(ask, request, ids[0], generates, names=_names(), **more)


def _of(value: T | list[T], number: int) -> T:
    return value[number] if isinstance(value, list) else value


def _place(request: GenerateRequest, name: str, number: int) -> str:
    return f"{name}[{number}]" if isinstance(getattr(request, name), list) else name


def _ids(request: GenerateRequest, count: int) -> list[str]:
    """A name for each of `count` prompts. Raises: RequestError, also for lists of other lengths."""
    for name in _OF_PROMPTS:
        value = getattr(request, name)
        if isinstance(value, list) and len(value) != count:
            wanted = f"one for all prompts, or one for each of the {count}"
            raise not_valid(name, found=f"a list of {len(value)}", wanted=wanted)
    rid = request.rid or uuid4().hex
    if isinstance(rid, str):
        check_name("rid", rid)
        return [rid] if count == 1 else [f"{rid}_{number}" for number in range(count)]
    for number, name in enumerate(rid):
        check_name(f"rid[{number}]", name)
    if len(set(rid)) < count:
        raise not_valid("rid", found="the same one twice")
    return rid


def _prompts(request: GenerateRequest) -> Sequence[str | list[int]]:
    """One prompt or several. Raises: RequestError."""
    text, ids = request.text, request.input_ids
    if (text is None) == (ids is None):
        raise RequestError("one of text and input_ids is needed", param="text")
    if isinstance(text, str):
        return [text]
    if text:
        return text
    one = [item for item in ids or () if isinstance(item, int)]
    several = [item for item in ids or () if not isinstance(item, int)]
    if one and not several:
        return [one]
    if several and not one:
        return several
    param = "text" if ids is None else "input_ids"
    raise not_valid(param, found="an empty list, or a mixture of lists and ids")


def _scores(request: GenerateRequest, number: int, param: str) -> _Scores | None:
    """What is wanted of a prompt. Raises: RequestError."""
    num_top = _of(request.top_logprobs_num, number)
    if _of(request.return_logprob, number):
        return _Scores(start=_of(request.logprob_start_len, number), num_top=num_top)
    if num_top:
        raise RequestError(f"{param} needs return_logprob", param=param)
    return None


def _sampling(
    ask: Ask, fields: SamplingFields, scores: _Scores | None, at: Mapping[str, str]
) -> SamplingParams:
    """Raises: RequestError that names the field, by where they are `at`."""
    return ask.sampling(
        _names(at["sampling_params"], at["top_logprobs_num"]),
        fields,
        structured_outputs=one_form(sglang_forms(fields, f"{at['sampling_params']}.")),
        max_tokens=fields.max_new_tokens,
        min_tokens=fields.min_new_tokens,
        include_stop_str_in_output=fields.no_stop_trim,
        seed=fields.sampling_seed,
        logprobs=scores and scores.num_top,
        prompt_logprobs=scores.num_top if scores is not None and scores.start >= 0 else None,
    )


def _reason(choice: Choice, num_tokens: int) -> dict[str, Any] | None:
    if choice.finish_reason is None:
        return None
    told: dict[str, Any] = {"type": choice.finish_reason}
    if choice.finish_reason == "length":
        told["length"] = num_tokens
    elif choice.stop_reason is not None:
        told["matched"] = choice.stop_reason
    return told


def _rows(side: str, rows: Sequence[TokenLogprob], with_text: bool, num_top: int) -> dict[str, Any]:
    def triple(row: TokenLogprob | TopToken) -> list[Any]:
        return [row.logprob, row.token_id, row.token if with_text else None]

    told: dict[str, Any] = {f"{side}_token_logprobs": [triple(row) for row in rows]}
    if num_top:
        tops = [[triple(top) for top in row.top[:num_top]] for row in rows]
        told[f"{side}_top_logprobs"] = tops
    return told


class _Reply(Reply[_Job]):
    """Events that each say all of a choice so far, as SGLang's do; whole, the same of all: a list
    where prompts came as one, or have several choices."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        first = (job.request.input_ids or [0])[0]
        is_list = isinstance(job.request.text, list) or isinstance(first, list)
        self._is_batch = is_list or len(self._choices[0]) > 1
        self._began_s = time.monotonic()
        self._counts: dict[tuple[int, int], Delta] = {}

    def add(self, number: int, delta: Delta) -> None:
        """Take a delta in, and its counts."""
        super().add(number, delta)
        self._counts[number, delta.index] = delta

    def whole(self) -> Any:
        """Every choice of every prompt."""
        told = [
            self._told(number, index)
            for number, of_prompt in enumerate(self._choices)
            for index in range(len(of_prompt))
        ]
        return told if self._is_batch else told[0]

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The event of a delta."""
        self.add(number, delta)
        told = self._told(number, delta.index)
        if self._is_batch:
            told["index"] = number * len(self._choices[number]) + delta.index
        return [sse(json.encode(told))]

    def closing(self) -> bytes:
        """The end of the stream."""
        return sse(b"[DONE]")

    def _told(self, number: int, index: int) -> dict[str, Any]:
        """One choice in SGLang's form."""
        job, choice = self._job, self._choices[number][index]
        generate, counts = job.generates[number], self._counts[number, index]
        meta: dict[str, Any] = {
            "id": generate.id,
            "finish_reason": _reason(choice, counts.num_tokens),
            "prompt_tokens": len(generate.prompt_ids),
            "completion_tokens": counts.num_tokens,
            "cached_tokens": counts.num_cached,
            "e2e_latency": time.monotonic() - self._began_s,
        }
        if (scores := job.scores[number]) is not None:
            meta |= self._scores(number, choice, scores)
        told = {"text": choice.text, "output_ids": choice.token_ids, "meta_info": meta}
        if job.warnings:
            told["warnings"] = job.warnings
        return told

    def _scores(self, number: int, choice: Choice, wanted: _Scores) -> dict[str, Any]:
        ids, start, num_top = self._job.generates[number].prompt_ids, wanted.start, wanted.num_top
        with_text = self._job.request.return_text_in_logprobs
        told = _rows("output", choice.logprobs, with_text, num_top)
        if start >= 0:
            scored = self._choices[number][0].prompt_logprobs[max(start - 1, 0) :]
            told |= _rows("input", scored, with_text, num_top)
            if start == 0:  # nothing scores the first token
                text = self._job.tokenizer.token_text(ids[0]) if with_text else None
                told["input_token_logprobs"].insert(0, [None, ids[0], text])
                if num_top:
                    told["input_top_logprobs"].insert(0, None)
        return told
