"""What the servers that may stand behind a proxy can be asked, beyond what OpenAI's API has.

A field that a kind does not have is refused by name: sent on, it would be ignored there or refused
in words that are about another request. Sources: the request types of vLLM 0.10.2 and later
(`entrypoints/openai`) and of SGLang 0.5.23 (`srt/entrypoints/openai/protocol.py`), which was run;
of llama.cpp's server `tools/server/server-schema.cpp`@0177c34 and the reading of `tool_choice` in
`server-common.cpp`, which takes an object for "auto"; DeepSeek's guides to thinking mode and JSON
output, its list of models and its error codes, as of October 2026, and for the fields of a request
`ChatRequest` of the crate deepseek-sdk 0.4.0, which follows its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
    fields under our names. `lacks`: fields that others have and that it ignores, with why, where
    that is not plain. `forms`: of structured outputs, with the field that takes each; `*` is the
    whole object. `thinking`: how reasoning is asked for. `names_ids`: of alternatives in logprobs,
    too. `scores_prompts`: by token ids. `has_salt`: parts prefix caches. `priority`: what turns
    ours, of which lower ones go first, into its; 0: has none. `takes_lark`: grammars of ours, in
    which control tokens stand by id. `ends_loops`: unless `repetition_detection` is false.
    `repeats_seed`: gives each of `n` choices the same seed. `hides_tools`: shows the model a tool
    that is named alone, while its grammar lets all be called. `settings`: where it tells how it was
    started."""

    name: str
    has_ids: bool = False
    names_ids: bool = False
    scores_prompts: bool = False
    has_salt: bool = False
    priority: Literal[-1, 0, 1] = 0
    has_budget: bool = False
    can_continue: bool = False
    takes_lark: bool = False
    ends_loops: bool = False
    repeats_seed: bool = False
    hides_tools: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    sampling: frozenset[str] = frozenset()
    forms: Mapping[str, str]
    thinking: Literal["template", "type", "none"] = "none"
    settings: str = ""


# What SGLang honours only where a flag was given, and else ignores.
_FLAGS = {
    "seed": "enable_deterministic_inference",
    "priority": "enable_priority_scheduling",
    "tool_choice": "tool_call_parser",
}
_UNFLAGGED = {
    name: f"an SGLang that was started without --{flag.replace('_', '-')}"
    for name, flag in _FLAGS.items()
}
_OPENAI_FORMS = {"json": "response_format", "json_object": "response_format"}
_OWN = Kind(
    name="fathom",
    has_ids=True,
    names_ids=True,
    scores_prompts=True,
    has_salt=True,
    priority=1,
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
            priority=-1,
            repeats_seed=True,
            hides_tools=True,
            sampling=frozenset(_SGLANG),
            can_continue=True,
            lacks={"add_generation_prompt": "", **_UNFLAGGED},
            forms={**_OPENAI_FORMS, "regex": "regex", "grammar": "ebnf"},
            thinking="template",
            settings="/server_info",
        ),
        Kind(
            name="llamacpp",
            sampling=frozenset(("top_k", "min_p", "ignore_eos")),
            lacks={"tool_choice.function": ""},
            forms=_OPENAI_FORMS,
            thinking="template",
        ),
        Kind(
            name="deepseek",
            lacks=dict.fromkeys(
                ("n", "seed", "logit_bias", "presence_penalty", "frequency_penalty"), ""
            ),
            forms={"json_object": "response_format"},
            thinking="type",
        ),
        Kind(name="openai", forms=_OPENAI_FORMS),
    )
}
_NEUTRAL = SamplingParams()


def as_started(kind: Kind, settings: Mapping[str, Any]) -> Kind:
    """`kind` as its `settings` have it. Untold, the two flags that few set are taken to be off and
    the one that serving calls needs to be on."""
    has = {name for name, flag in _FLAGS.items() if settings.get(flag, name == "tool_choice")}
    lacks = {name: why for name, why in kind.lacks.items() if name not in has}
    is_ours = kind.priority and settings.get("schedule_low_priority_values_first")
    return replace(kind, lacks=lacks, priority=1 if is_ours else kind.priority)


def sampling_fields(request: GenerateRequest, kind: Kind) -> dict[str, Any]:
    """How to choose tokens, for an upstream of `kind`.

    Raises: RequestError naming a field that it does not have.
    """
    sampling = request.sampling
    told: dict[str, Any] = {"n": sampling.n, "max_tokens": sampling.max_tokens}
    told |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for name in ("n", "seed", "logit_bias", "presence_penalty", "frequency_penalty"):
        if name in kind.lacks and getattr(sampling, name) != getattr(_NEUTRAL, name):
            raise refused(name, kind, kind.lacks[name])
    if kind.repeats_seed and sampling.n > 1 and sampling.seed is not None:
        raise refused("seed", kind, "an upstream that gives all of n choices the same seed")
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
    if request.priority:
        if not kind.priority or "priority" in kind.lacks:
            raise refused("priority", kind, kind.lacks.get("priority", ""))
        told["priority"] = kind.priority * request.priority
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
