"""Compares answers of the embedded model, asked by the real clients of each dialect, with what
`jsonschema`, `re` and pydantic read; and refusals with their place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import jsonschema
import ollama
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.server.processes import Server, serving
from tests.server.test_structured import PERSON

ASK: Any = [{"role": "user", "content": "Describe somebody."}]
BAD_SCHEMA = {"type": "object", "properties": {"a": {"uniqueItems": True}}}


class Customer(BaseModel):
    """Something small that clients make a schema of."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["customer", "supplier"]
    active: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--no-enable-prefix-caching") as one:
        yield one


@pytest.fixture(scope="module")
def model(server: Server) -> str:
    return str(httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"])


# Anthropic


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as one:
        yield one


def anthropic_tools(**more: Any) -> Any:
    return [
        {"name": "add_person", "input_schema": PERSON, **more},
        {"name": "wait", "input_schema": {"type": "object"}},
    ]


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add_person"}])
def test_anthropic_forces_calls(
    claude: anthropic.Anthropic, model: str, choice: Any, thinking: Any
) -> None:
    asked: dict[str, Any] = {
        "model": model, "messages": ASK, "max_tokens": 400, "tools": anthropic_tools(strict=True),
        "tool_choice": {**choice, "disable_parallel_tool_use": True},
        "thinking": {"type": thinking, **({"budget_tokens": 20} if thinking == "enabled" else {})},
    }  # fmt: skip
    with claude.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    (call,) = [block for block in message.content if block.type == "tool_use"]
    if call.name == "add_person":
        jsonschema.validate(call.input, PERSON)
    else:
        assert choice["type"] == "any"
    assert not [block for block in message.content if block.type == "text"]


def test_anthropic_formats_hold(claude: anthropic.Anthropic, model: str) -> None:
    parsed = claude.messages.parse(
        model=model, messages=ASK, max_tokens=200, output_format=Customer
    )
    assert isinstance(parsed.parsed_output, Customer)
    schema = {"type": "json_schema", "schema": PERSON}
    for extra in ({"output_config": {"format": schema}}, {"output_format": schema}):
        message = claude.messages.create(
            model=model, messages=ASK, max_tokens=400, extra_body=extra
        )
        jsonschema.validate(json.loads(message.content[-1].text), PERSON)  # type: ignore[union-attr]


# OpenAI's responses


@pytest.fixture
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_responses_formats_hold(openai_client: openai.OpenAI, model: str) -> None:
    parsed = openai_client.responses.parse(model=model, input="?", text_format=Customer)
    assert isinstance(parsed.output_parsed, Customer)
    named = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
    answer = openai_client.responses.create(
        model=model,
        input="?",
        text={"format": named},  # type: ignore[arg-type, typeddict-item]
    )
    jsonschema.validate(json.loads(answer.output_text), PERSON)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    free = openai_client.responses.create(
        model=model, input="?", text={"format": {"type": "json_object"}}, max_output_tokens=60
    )
    assert free.output_text.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add_person"}])
def test_responses_force_calls(openai_client: openai.OpenAI, model: str, choice: Any) -> None:
    tools: Any = [
        {"type": "function", "name": "add_person", "parameters": PERSON, "strict": True},
        {"type": "function", "name": "wait", "parameters": {"type": "object"}, "strict": True},
    ]
    answer = openai_client.responses.create(
        model=model, input="?", tools=tools, tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    if call.name == "add_person":
        jsonschema.validate(json.loads(call.arguments), PERSON)
    else:
        assert choice == "required"
    assert answer.output_text == ""
    told = json.loads(answer.model_dump_json())["tool_choice"]
    assert told == choice


# Ollama


def test_ollama_formats_hold(server: Server, model: str) -> None:
    with ollama.Client(host=server.url) as client:
        options: Any = {"num_predict": 400}
        for think in (None, True):
            told = client.chat(
                model=model, messages=ASK, format=PERSON, options=options, think=think
            )
            jsonschema.validate(json.loads(told.message.content or ""), PERSON)
        wrote = client.generate(
            model=model, prompt="?", format=Customer.model_json_schema(), options=options
        )
        Customer.model_validate_json(wrote.response)
        raw = client.generate(model=model, prompt="?", raw=True, format=PERSON, options=options)
        jsonschema.validate(json.loads(raw.response), PERSON)
        free = client.generate(model=model, prompt="?", format="json", options={"num_predict": 20})
        assert free.response.startswith("{")


# SGLang

TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
    "triggers": ["<n>"],
}


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-f]{2}-\d{3}"}, r"[a-f]{2}-\d{3}"),
        ({"ebnf": 'root ::= "[" [0-9]{1,4} "]"'}, r"\[[0-9]{1,4}\]"),
        ({"json_schema": '{"enum": [1, "two", null]}'}, r'1|"two"|null'),
        ({"structural_tag": json.dumps(TAGS)}, r"(?s:[^<]|<(?!n>)|<n>\s*-?\d+</n>)*(<n>.*)?"),
    ],
)
def test_sglang_forms_hold(server: Server, form: dict[str, str], pattern: str) -> None:
    body = {"text": ["Say", "Numbers: <n>1</n> <n>2</n>"], "sampling_params": form}
    answers = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert len(answers) == 2
    for answer in answers:
        assert re.fullmatch(pattern, answer["text"]), answer["text"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/messages", {"messages": ASK, "max_tokens": 5, "output_config": {
            "format": {"type": "json_schema", "schema": BAD_SCHEMA}}},
         "output_config.format.schema"),
        ("/v1/messages", {"messages": ASK, "max_tokens": 5, "tools": [
            {"name": "f", "strict": True, "input_schema": BAD_SCHEMA}]}, "tools[0].input_schema"),
        ("/v1/responses", {"input": "?", "text": {"format": {
            "type": "json_schema", "name": "x", "schema": BAD_SCHEMA}}}, "text.format.schema"),
        ("/v1/responses", {"input": "?", "tools": [{"type": "function", "name": "f",
            "strict": True, "parameters": BAD_SCHEMA}]}, "tools[0].parameters"),
        ("/generate", {"text": "?", "sampling_params": {"json_schema": json.dumps(BAD_SCHEMA)}},
         "sampling_params.json_schema"),
        ("/api/chat", {"messages": ASK, "format": BAD_SCHEMA}, "format"),
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_enforced_have_their_place(
    server: Server, model: str, path: str, body: dict[str, Any], param: str
) -> None:
    if path != "/generate":
        body = {"model": model, **body}
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 400
    assert f"{param}: the keyword 'uniqueItems' cannot be enforced" in answer.text
    assert "#/properties/a/uniqueItems" in answer.text
