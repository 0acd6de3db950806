"""Compares every field of the schemas with a table that says what it does to the request that
reaches the engine, or that it is refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fathom.core.types import ReasoningLimit, SamplingParams
from fathom.engine.requests import GenerateRequest
from fathom.errors import NotFoundError, RequestError
from fathom.server.config import ServerConfig
from fathom.server.decode import decode
from fathom.server.job import Ask
from fathom.server.openai import chat, completions
from fathom.server.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from fathom.server.refused import refusals
from fathom.server.state import ServedModel, ServerState
from tests.server.scripted_engine import MODEL, ScriptedEngine

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
REFUSED_CHAT = refusals("openai", "chat").top
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# Field -> a value that is honoured, and the attribute that it changes (a path from the request
# to the engine), with what it becomes there. None: tested elsewhere, by what the answer holds.
COMMON: dict[str, tuple[Any, str | None, Any]] = {
    "model": ("second-name", None, None),
    "max_tokens": (7, "sampling.max_tokens", 7),
    "min_tokens": (3, "sampling.min_tokens", 3),
    "temperature": (0.5, "sampling.temperature", 0.5),
    "top_p": (0.9, "sampling.top_p", 0.9),
    "top_k": (4, "sampling.top_k", 4),
    "min_p": (0.1, "sampling.min_p", 0.1),
    "n": (2, "sampling.n", 2),
    "stop": ("x", "sampling.stop", ("x",)),
    "stop_token_ids": ([5], "sampling.stop_token_ids", (5,)),
    "include_stop_str_in_output": (True, "sampling.include_stop_str_in_output", True),
    "seed": (-3, "sampling.seed", -3),
    "frequency_penalty": (1, "sampling.frequency_penalty", 1.0),
    "presence_penalty": (-1, "sampling.presence_penalty", -1.0),
    "repetition_penalty": (1.2, "sampling.repetition_penalty", 1.2),
    "logit_bias": ({"5": -100}, "sampling.logit_bias", {5: -100.0}),
    "bad_words": (["Hi"], None, None),
    "allowed_token_ids": ([5], "sampling.allowed_token_ids", (5,)),
    "truncate_prompt_tokens": (1, None, None),
    "prompt_logprobs": (2, "sampling.prompt_logprobs", 2),
    "ignore_eos": (True, "sampling.ignore_eos", True),
    "skip_special_tokens": (False, "sampling.skip_special_tokens", False),
    "repetition_detection": (False, "sampling.repetition_detection", False),
    "stream": (True, None, None),
    "stream_options": ({"include_usage": True}, None, None),
    "priority": (-1, "priority", -1),
    "request_id": ("mine", None, None),
    "cache_salt": ("tenant", "cache_salt", "tenant"),
    "return_token_ids": (True, None, None),
    "return_tokens_as_token_ids": (True, None, None),
    "response_format": ({"type": "json_object"}, "sampling.structured_outputs.json_object", True),
    "structured_outputs": (
        {"choice": ["a", "b"]},
        "sampling.structured_outputs.choice",
        ("a", "b"),
    ),
    "json_schema": ('{"type": "null"}', "sampling.structured_outputs.json", '{"type": "null"}'),
    "regex": ("a+", "sampling.structured_outputs.regex", "a+"),
    "ebnf": ('root ::= "a"', "sampling.structured_outputs.grammar", 'root ::= "a"'),
    "structural_tag": (
        '{"triggers": []}',
        "sampling.structured_outputs.structural_tag",
        '{"triggers": []}',
    ),
    "user": ("somebody", None, None),
    "safety_identifier": ("somebody", None, None),
}
CHAT: dict[str, tuple[Any, str | None, Any]] = COMMON | {
    "messages": ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], None, None),
    "max_completion_tokens": (7, "sampling.max_tokens", 7),
    "logprobs": (True, "sampling.logprobs", 0),
    "top_logprobs": (5, "sampling.logprobs", 5),
    "tools": ([TOOL], "format.tools", "bare"),
    "tool_choice": ({"type": "function", "function": {"name": "f"}}, "tools.must_call", True),
    "parallel_tool_calls": (False, None, None),
    "chat_template_kwargs": ({"enable_thinking": True}, "format.starts_inside", True),
    "thinking": ({"type": "enabled"}, "format.starts_inside", True),
    "enable_thinking": (True, "format.starts_inside", True),
    "thinking_token_budget": (9, "sampling.reasoning_limit.num_tokens", 9),
    "max_thinking_tokens": (9, "sampling.reasoning_limit.num_tokens", 9),
    "reasoning_effort": ("high", "format.starts_inside", True),
    "add_generation_prompt": (False, None, None),
    "continue_final_message": (True, None, None),
    "echo": (True, None, None),
    "include_reasoning": (False, None, None),
}
COMPLETION: dict[str, tuple[Any, str | None, Any]] = COMMON | {
    "prompt": ([5, 6], "prompt_ids", (5, 6)),
    "suffix": ("end", None, None),
    "echo": (True, None, None),
    "logprobs": (3, "sampling.logprobs", 3),
    "thinking_token_budget": (9, None, None),  # tests/server/test_real_proxy.py
    "add_special_tokens": (False, None, None),
}
# What a field needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "min_tokens": {"max_tokens": 9},
    "tool_choice": {"tools": [TOOL]},
    "continue_final_message": {
        "messages": [*ASK["messages"], {"role": "assistant", "content": "Well"}]
    },
}


@pytest.fixture(scope="module")
def model() -> ServedModel:
    engine = ScriptedEngine()
    state = ServerState(ServerConfig())
    state.engine = engine
    return state.model(engine)


def prepared(body: dict[str, Any], model: ServedModel) -> GenerateRequest:
    raw = msgspec.json.encode(body)
    if "prompt" in body and body.get("messages") != ASK["messages"]:
        return completions._prepare(Ask(raw, model)).generates[0]
    return chat._prepare(Ask(raw, model)).generates[0]


def reach(value: object, path: str) -> object:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_tables_cover_the_schemas() -> None:
    assert set(CHAT) == set(ChatRequest.__struct_fields__)
    assert set(COMPLETION) == set(CompletionRequest.__struct_fields__)


@pytest.mark.parametrize("field", CHAT)
def test_chat_field_is_honoured(model: ServedModel, field: str) -> None:
    value, path, expected = CHAT[field]
    request = prepared({**ASK, **BESIDE.get(field, {}), field: value}, model)
    if path is not None:
        assert reach(request, path) == expected


@pytest.mark.parametrize("field", COMPLETION)
def test_completion_field_is_honoured(model: ServedModel, field: str) -> None:
    value, path, expected = COMPLETION[field]
    request = prepared({"prompt": "Hi", **BESIDE.get(field, {}), field: value}, model)
    if path is not None:
        assert reach(request, path) == expected


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_null_is_as_good_as_nothing(kind: type[msgspec.Struct]) -> None:
    required = {"messages": [], "prompt": "x"}
    body = {name: required.get(name) for name in kind.__struct_fields__}
    assert decode(msgspec.json.encode(body), kind)


@pytest.mark.parametrize("field", sorted(REFUSED_CHAT))
def test_known_but_not_honoured_in_chat(model: ServedModel, field: str) -> None:
    entry = REFUSED_CHAT[field]
    with pytest.raises(RequestError) as caught:
        prepared({**ASK, field: {"not": "harmless"}}, model)
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
    assert entry.why in str(caught.value)
    for value in (*entry.harmless, None):
        prepared({**ASK, field: value}, model)


@pytest.mark.parametrize("field", sorted(refusals("openai", "completions").top))
def test_known_but_not_honoured_in_completions(model: ServedModel, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        prepared({"prompt": "x", field: {"not": "harmless"}}, model)
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"structured_outputs": {"regex": "a", "disable_additional_properties": True}},
         "structured_outputs.disable_additional_properties"),
        ({"thinking": {"type": "adaptive"}}, "thinking.type"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "stream_options.include_obfuscation"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content[0].type"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)  # fmt: skip
def test_values_that_are_not_honoured_are_named(
    model: ServedModel, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        prepared({**ASK, **change}, model)
    assert caught.value.param == param
    assert str(caught.value.code).startswith("unsupported_")


@pytest.mark.parametrize(
    ("body", "param", "near"),
    [
        ({"temprature": 1}, "temprature", "temperature"),
        ({"max_token": 1}, "max_token", "max_tokens"),
        ({"repitition_penalty": 1}, "repitition_penalty", "repetition_penalty"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages",
         "include_usage"),
        ({"chat_template_kwargs": {"thinkin": True}}, "chat_template_kwargs.thinkin", "thinking"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameter": {}}}]},
         "tools[0].function.parameter", "parameters"),
        ({"zzz": 1}, "zzz", ""),
    ],
)  # fmt: skip
def test_unknown_fields_are_named_with_the_nearest(
    model: ServedModel, body: dict[str, Any], param: str, near: str
) -> None:
    with pytest.raises(RequestError) as caught:
        prepared({**ASK, **body}, model)
    assert (caught.value.param, caught.value.code) == (param, "unknown_parameter")
    assert near in caught.value.fix
    assert bool(near) == bool(caught.value.fix)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, TokenizeRequest])
def test_types_are_not_coerced(kind: type[msgspec.Struct]) -> None:
    for field in ("add_generation_prompt", "seed", "stream", "model", "add_special_tokens"):
        if field in kind.__struct_fields__:
            needed: dict[str, Any] = {"messages": [], "prompt": ""}
            body = {name: needed[name] for name in needed if name in kind.__struct_fields__}
            with pytest.raises(RequestError) as caught:
                decode(msgspec.json.encode({**body, field: [1]}), kind)
            assert caught.value.param == field


def test_required_fields() -> None:
    for kind, field in (
        (ChatRequest, "messages"),
        (CompletionRequest, "prompt"),
        (DetokenizeRequest, "tokens"),
    ):
        with pytest.raises(RequestError) as caught:
            decode(b"{}", kind)
        assert (caught.value.param, caught.value.code) == (field, "missing_required_parameter")


def test_defaults_are_the_checkpoints(model: ServedModel) -> None:
    assert model.defaults != SamplingParams()
    sampling = prepared(ASK, model).sampling
    assert sampling.temperature == model.defaults.temperature
    assert sampling.top_p == model.defaults.top_p


def test_max_tokens_is_cut_to_the_context(model: ServedModel) -> None:
    request = prepared({**ASK, "max_tokens": 10**9}, model)
    room = model.plan.max_model_len - len(request.prompt_ids)
    assert request.sampling.max_tokens == room
    assert prepared(ASK, model).sampling.max_tokens == room


def test_thinking_by_every_name(model: ServedModel) -> None:
    for on, off in (
        ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
        (
            {"chat_template_kwargs": {"thinking": True}},
            {"chat_template_kwargs": {"thinking": False}},
        ),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "none"}),
        ({"thinking": True}, {"thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": False}),
    ):
        assert prepared({**ASK, **on}, model).format.starts_inside
        assert not prepared({**ASK, **off}, model).format.starts_inside


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"thinking": True, "enable_thinking": False}, "enable_thinking"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, "reasoning_effort"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"thinking": False}},
            "enable_thinking",
        ),
        ({"thinking_token_budget": 3, "max_thinking_tokens": 4}, "max_thinking_tokens"),
        ({"enable_thinking": False, "thinking_token_budget": 3}, "thinking_token_budget"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
    ],
)
def test_spellings_that_disagree_are_refused(
    model: ServedModel, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        prepared({**ASK, **change}, model)
    assert caught.value.param == param


def test_a_limit_is_for_what_the_prompt_or_the_answer_opens(model: ServedModel) -> None:
    ids = model.tokenizer.special_ids
    limited = {**ASK, "thinking_token_budget": 7}
    opened = prepared({**limited, "thinking": True}, model).sampling.reasoning_limit
    assert opened == ReasoningLimit(7, ids["</think>"], None)
    by_answer = prepared(limited, model).sampling.reasoning_limit
    assert by_answer == ReasoningLimit(7, ids["</think>"], ids["<think>"])


def test_the_meaning_and_what_was_left_out_are_told(model: ServedModel) -> None:
    body = {**ASK, "enable_thinking": True, "thinking_token_budget": 9, "guided_json": {}, "zz": 1}
    job = chat._prepare(Ask(msgspec.json.encode(body), model, ServerConfig(lenient=True)))
    assert job.thinking == {"type": "enabled", "budget_tokens": 9}
    assert [text.split()[0] for text in job.warnings] == ["guided_json", "unknown"]


def test_infill_has_the_order_of_the_model_card(model: ServedModel) -> None:
    ids = prepared({"prompt": "def f(", "suffix": "return 1"}, model).prompt_ids
    assert model.tokenizer.decode(ids) == (
        "<｜fim▁begin｜>def f(<｜fim▁hole｜>return 1<｜fim▁end｜>"
    )


def test_unserved_model_is_not_found(model: ServedModel) -> None:
    with pytest.raises(NotFoundError) as caught:
        prepared({**ASK, "model": "gpt-4"}, model)
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.wanted
