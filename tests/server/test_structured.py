"""Compares answers of the embedded model, asked by the real openai client, with independent readers
of what was asked: `jsonschema`, `re`, `json`; and errors with what a client needs to mend them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.server.processes import Server, serving

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["customer", "supplier"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Describe somebody."}]
TOOLS = [
    {"type": "function", "function": {"name": "add_person", "strict": True, "parameters": PERSON}},
    {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--no-enable-prefix-caching") as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    model = client.models.list().data[0].id
    asked: dict[str, Any] = {"model": model, "messages": ASK, "temperature": 1.0, "max_tokens": 400}
    return client.chat.completions.create(**asked | fields).choices[0]


def response_format(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.parametrize("thinking", [False, True])
def test_a_schema_holds_after_the_reasoning(client: openai.OpenAI, thinking: bool) -> None:
    for seed in range(5):
        choice = ask(
            client,
            response_format=response_format(PERSON),
            seed=seed,
            extra_body={"chat_template_kwargs": {"thinking": thinking}},
        )
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)
        assert bool(choice.message.model_extra.get("reasoning_content")) == thinking


def test_streams_batches_and_logprobs_say_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"response_format": response_format(PERSON), "seed": 3}
    whole = ask(client, **asked)
    model = client.models.list().data[0].id
    chunks = client.chat.completions.create(
        model=model, messages=ASK, temperature=1.0, max_tokens=400, stream=True, **asked
    )  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        whole.message.content
    )
    both = client.chat.completions.create(
        model=model, messages=ASK, temperature=1.0, max_tokens=400, n=3, **asked
    )  # type: ignore[call-overload]
    assert both.choices[0].message.content == whole.message.content
    for choice in both.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)
    # Log-probabilities come for every token, so that none may be forced.
    scored = ask(client, **asked, logprobs=True)
    jsonschema.validate(json.loads(scored.message.content), PERSON)
    assert "".join(row.token for row in scored.logprobs.content).startswith(scored.message.content)


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": r"[a-f]{2}-\d{3}"}}, r"[a-f]{2}-\d{3}"),
    ({"regex": r"(ab|cd){1,6}x"}, r"(ab|cd){1,6}x"),
    ({"structured_outputs": {"choice": ["yes", "no", 'so "so"']}}, r'yes|no|so "so"'),
    ({"ebnf": 'root ::= "[" [0-9]{1,4} "]"'}, r"\[[0-9]{1,4}\]"),
    ({"structured_outputs": {"grammar": 'start: "<" W ">"\nW: /[a-z]{1,5}/'}}, "<[a-z]{1,5}>"),
    ({"json_schema": '{"enum": [1, "two", null]}'}, r'1|"two"|null'),
    (
        {"structured_outputs": {"json": {"type": "array", "items": {"type": "boolean"},
                                         "minItems": 2, "maxItems": 2},
                                "disable_any_whitespace": True}},
        r"\[(true|false), (true|false)\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("extra", "pattern"), FORMS)
def test_every_form_holds(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        choice = ask(client, seed=seed, extra_body=extra)
        assert re.fullmatch(pattern, choice.message.content), choice.message.content
        assert choice.finish_reason == "stop"
    model = client.models.list().data[0].id
    text = client.completions.create(model=model, prompt="Say", max_tokens=60, extra_body=extra)
    assert re.fullmatch(pattern, text.choices[0].text)


def test_json_objects_and_tags(client: openai.OpenAI) -> None:
    choice = ask(client, response_format={"type": "json_object"}, seed=2, temperature=0.6)
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    tag = {
        "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
        "triggers": ["<n>"],
    }
    bias = client.completions.create(
        model=client.models.list().data[0].id,
        prompt="Numbers: <n>1</n> <n>2</n> <n>3</n>",
        max_tokens=60,
        temperature=0.0,
        extra_body={"structured_outputs": {"structural_tag": tag}},
    )
    for begun in bias.choices[0].text.split("<n>")[1:-1]:
        assert re.match(r"-?\d+</n>", begun)


@pytest.mark.parametrize("thinking", [False, True])
def test_tools_can_be_forced_and_their_arguments_hold(
    client: openai.OpenAI, thinking: bool
) -> None:
    extra = {"chat_template_kwargs": {"thinking": thinking}}
    named = {"type": "function", "function": {"name": "add_person"}}
    for choice_of_tool in ("required", named):
        choice = ask(
            client, tools=TOOLS, tool_choice=choice_of_tool, seed=4, extra_body=extra,
            parallel_tool_calls=False,
        )  # fmt: skip
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        if call.function.name == "add_person":
            jsonschema.validate(arguments, PERSON)
        else:
            assert choice_of_tool == "required"
            assert isinstance(arguments, dict)
        assert not choice.message.content


BAD = [
    ({"response_format": response_format({"properties": {"a": {"not": {"pattern": "a"}}}})},
     "response_format.json_schema.schema", "#/properties/a/not"),
    ({"response_format": response_format({"items": {"pattern": "(?=a)"}})},
     "response_format.json_schema.schema", "#/items/pattern"),
    ({"response_format": response_format({"type": "object", "propertis": {}})},
     "response_format.json_schema.schema", "#/propertis"),
    ({"response_format": response_format({"type": "integer", "multipleOf": -3})},
     "response_format.json_schema.schema", "#/multipleOf"),
    ({"response_format": response_format({"$ref": "#/$defs/a"})},
     "response_format.json_schema.schema", "#/$ref"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", ""),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
        "type": "object", "properties": {"a": {"uniqueItems": True}}}}}]},
     "tools[0].function.parameters", "#/properties/a/uniqueItems"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
     "response_format.json_schema", "json_object"),
    ({"response_format": {"type": "text", "structures": []}}, "response_format.structures", "text"),
    ({"tool_choice": "required"}, "tool_choice", ""),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice.function.name", "add_person"),
    ({"regex": "("}, "regex", ""),
    ({"ebnf": "::="}, "ebnf", ""),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex, cho"),
    ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf", "regex, ebnf"),
    ({"guided_json": {}}, "guided_json", "structured_outputs"),
    ({"guided_grammar": "x"}, "guided_grammar", "structured_outputs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "said"), BAD)
def test_what_cannot_be_enforced_is_a_400_with_its_place(
    server: Server, change: dict[str, Any], param: str, said: str
) -> None:
    for stream in (False, True):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": ASK, "stream": stream, **change},
            timeout=60,
        )
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert said in error["message"]


def test_explosive_grammars_are_refused_in_time_and_others_go_on(server: Server) -> None:
    """Patterns with nested counts, which make some engines allocate without end."""
    explosive = [
        {"regex": "((((a{1,999}b?){1,999}c?){1,999}d?){1,999}e?){1,999}"},
        {"regex": "(" + "|".join(f".{{0,200}}{i}.{{0,200}}" for i in range(60)) + ")"},
        {"structured_outputs": {"choice": ["a" * 120 + f"{i}" + "b" * 120 for i in range(2000)]}},
        {"json_schema": json.dumps({"anyOf": [
            {"type": "object", "properties": {f"k{i}": {"pattern": f"a.*{i}.*b"}}}
            for i in range(400)]})},
    ]  # fmt: skip
    for body in explosive:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": ASK, "max_tokens": 8, **body},
            timeout=20,
        )
        assert answer.status_code in (200, 400), answer.text
        fine = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": ASK, "max_tokens": 30, "regex": "[0-9]{3}"},
            timeout=20,
        )
        assert re.fullmatch("[0-9]{3}", fine.json()["choices"][0]["message"]["content"])


def test_a_grammar_that_grows_too_large_in_an_answer_is_named(server: Server) -> None:
    """As it is where it does so at the check: the error named no field."""
    nested = "((((a{1,999}b?){1,999}c?){1,999}d?){1,999}e?){1,999}"
    asked = {"prompt": "a", "max_tokens": 900, "min_tokens": 900, "seed": 1, "temperature": 1.0}
    answer = httpx.post(f"{server.url}/v1/completions", json={**asked, "regex": nested}, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("regex", "schema_state_limit")


def _scrap(pick: random.Random, depth: int = 0) -> Any:
    """A schema, or something like one."""
    keys = ["type", "properties", "required", "items", "enum", "const", "pattern", "format"]
    keys += ["anyOf", "allOf", "$ref", "minLength", "maximum", "additionalProperties", "not"]
    keys += ["if", "then", "dependentRequired", "propertyNames", "unevaluatedProperties"]
    keys += ["patternProperties", "minProperties", "$defs", "multipleOf", "prefixItems", "oneOf"]
    kind = pick.randrange(9 if depth < 4 else 5)
    if kind < 5:
        return pick.choice(
            [None, True, "string", "#", "#/$defs/a", -1, 1e300, "object", ["a"], "a{9999}", "[", 0]
        )
    if kind == 5:
        return [_scrap(pick, depth + 1) for _ in range(pick.randrange(4))]
    return {pick.choice([*keys, "a"]): _scrap(pick, depth + 1) for _ in range(pick.randrange(5))}


def test_fuzzed_schemas_never_break_the_server(server: Server) -> None:
    pick = random.Random(7)
    counts = {200: 0, 400: 0}
    with httpx.Client(timeout=30) as http:
        for _ in range(250):
            schema = _scrap(pick)
            answer = http.post(
                f"{server.url}/v1/chat/completions",
                json={"messages": ASK, "max_tokens": 6, "response_format": response_format(schema)},
            )
            counts[answer.status_code] += 1  # anything else fails here
    assert min(counts.values()) > 5
    server.until(server.is_empty)
