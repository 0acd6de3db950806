"""What the servers that may stand behind a proxy can be asked, beyond what OpenAI's API has.

A field that a kind does not have is refused by name: sent on, it would be ignored there or refused
in words that are about another request. Sources: the request types of vLLM 0.10.2 and later
(`entrypoints/openai`) and of SGLang (`python/sglang/srt/entrypoints/openai/protocol.py`@004c82e);
of llama.cpp's server `tools/server/server-schema.cpp`@0177c34 and the reading of `tool_choice` in
`server-common.cpp`, which takes an object for "auto"; DeepSeek's reference of its chat completions
and its guide to thinking mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fathom.core.structured import FORMS
from fathom.core.types import SamplingParams, StructuredOutputs
from fathom.engine.requests import GenerateRequest
from fathom.errors import RequestError
from fathom.text.grammar.asked import Asked

_SGLANG = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens")
_VLLM = (*_SGLANG, "allowed_token_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`has_ids`: gives the answer's token ids, on whose account it can be read exactly. `sampling`:
    fields under our names. `lacks`: fields that others have and that it ignores. `forms`: of
    structured outputs, with the field that takes each; `*` is the whole object. `thinking`: how
    reasoning is asked for. `names_ids`: in logprobs, too. `has_salt`: parts prefix caches.
    `takes_lark`: grammars of ours, in which control tokens stand by id. `ends_loops`: unless
    `repetition_detection` is false."""

    name: str
    has_ids: bool = False
    names_ids: bool = False
    has_salt: bool = False
    has_priority: bool = False
    has_budget: bool = False
    can_continue: bool = False
    takes_lark: bool = False
    ends_loops: bool = False
    lacks: frozenset[str] = frozenset()
    sampling: frozenset[str] = frozenset()
    forms: Mapping[str, str]
    thinking: Literal["template", "type", "none"] = "none"


_OPENAI_FORMS = {"json": "response_format", "json_object": "response_format"}
_OWN = Kind(
    name="fathom",
    has_ids=True,
    names_ids=True,
    has_salt=True,
    has_priority=True,
    has_budget=True,
    can_continue=True,
    takes_lark=True,
    ends_loops=True,
    sampling=frozenset(_VLLM),
    forms={"*": "structured_outputs"},
    thinking="template",
)
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        _OWN,
        replace(_OWN, name="vllm", takes_lark=False, ends_loops=False),
        Kind(
            name="sglang",
            has_ids=True,
            has_salt=True,
            has_priority=True,
            sampling=frozenset(_SGLANG),
            can_continue=True,
            lacks=frozenset(("add_generation_prompt",)),
            forms={**_OPENAI_FORMS, "regex": "regex", "grammar": "ebnf"},
            thinking="template",
        ),
        Kind(
            name="llamacpp",
            sampling=frozenset(("top_k", "min_p", "ignore_eos")),
            lacks=frozenset(("tool_choice.function",)),
            forms=_OPENAI_FORMS,
            thinking="template",
        ),
        Kind(
            name="deepseek",
            lacks=frozenset(("n", "seed", "logit_bias")),
            forms={"json_object": "response_format"},
            thinking="type",
        ),
        Kind(name="openai", forms=_OPENAI_FORMS),
    )
}
_NEUTRAL = SamplingParams()


def sampling_fields(request: GenerateRequest, kind: Kind) -> dict[str, Any]:
    """How to choose tokens, for an upstream of `kind`.

    Raises: RequestError naming a field that it does not have.
    """
    sampling = request.sampling
    told: dict[str, Any] = {"n": sampling.n, "max_tokens": sampling.max_tokens}
    told |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for name in ("n", "seed", "logit_bias"):
        if name in kind.lacks and getattr(sampling, name) != getattr(_NEUTRAL, name):
            raise refused(name, kind)
    for name in ("presence_penalty", "frequency_penalty", "seed", *_VLLM):
        value = getattr(sampling, name)
        if value == getattr(_NEUTRAL, name):
            continue
        if name in _VLLM and name not in kind.sampling:
            raise refused(name, kind)
        told[name] = value
    if sampling.logit_bias:
        told["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if kind.ends_loops and not sampling.repetition_detection:
        told["repetition_detection"] = False
    if sampling.bad_token_ids:
        raise refused("bad_words", kind, "words that became tokens here, which no field takes")
    if sampling.prompt_logprobs is not None:
        raise refused("prompt_logprobs", kind, "scores of the prompt are not passed through")
    if request.priority:
        if not kind.has_priority:
            raise refused("priority", kind)
        told["priority"] = request.priority
    if request.cache_salt and kind.has_salt:
        told["cache_salt"] = request.cache_salt
    return told


def form_fields(form: StructuredOutputs, kind: Kind) -> dict[str, Any]:
    """The form of an answer, for an upstream of `kind`. Raises: RequestError as above."""
    given = {
        item.name: getattr(form, item.name)
        for item in fields(form)
        if item.name != "param" and getattr(form, item.name) not in (None, False)
    }
    if "*" in kind.forms:
        return {kind.forms["*"]: given}
    name = next((name for name in FORMS if name in given), "json")
    extra = [other for other in given if other != name]
    if name not in kind.forms or extra:
        raise refused(form.field_path(extra[0] if extra else name), kind)
    field = kind.forms[name]
    if field != "response_format":
        return {field: given[name]}
    if name == "json_object":
        return {field: {"type": "json_object"}}
    from msgspec import json

    schema = json.decode(given["json"])
    return {field: {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def as_sent(param: str | None, asked: Asked) -> str | None:
    """The client's name for a field that an upstream got as `structured_outputs`."""
    if param is None or not param.startswith("structured_outputs"):
        return param
    return asked.form.field if asked.form is not None else "tools"


def refused(param: str, kind: Kind, why: str = "", fix: str = "leave it out") -> RequestError:
    """What is said of a field that the proxy cannot honour."""
    return RequestError(
        f"{param} cannot be honoured by this proxy",
        param=param,
        code="unsupported_parameter",
        found=why or f"an upstream of kind {kind.name}, which has no such field",
        fix=fix,
    )
