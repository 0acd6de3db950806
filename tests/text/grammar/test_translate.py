"""Compares what a translated schema lets through with `jsonschema`'s verdict on the schema that was
asked for, over every small value."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine
from fathom.text.grammar.schema import SchemaFault
from fathom.text.grammar.translate import in_engine_words
from fathom.text.tokenizer import Tokenizer
from tests.text.grammar.walks import allowed_ids

EMBEDDED = Path(__file__).resolve().parents[3] / "src" / "fathom" / "weights" / "embedded"


@pytest.fixture(scope="module")
def embedded() -> tuple[Tokenizer, GrammarEngine]:
    tokenizer = Tokenizer.load(EMBEDDED)
    return tokenizer, GrammarEngine(tokenizer)


SCALARS: list[Any] = [None, True, False, 0, 1, 2.5, -3, "", "a", "b", "abc", "x y"]
NAMES = ("a", "b", "key")


def values() -> Iterator[list[Any]]:
    """Every small value; an object once for each order of its names."""
    yield from ([value] for value in SCALARS)
    for count in range(4):
        yield from ([list(items)] for items in itertools.product((1, "a", None), repeat=count))
    for chosen in itertools.product((None, 1, "x"), repeat=len(NAMES)):
        items = [(n, v) for n, v in zip(NAMES, chosen, strict=True) if v is not None]
        yield [dict(order) for order in itertools.permutations(items)]


def accepts(engine: GrammarEngine, tokenizer: Tokenizer, grammar: str, value: Any) -> bool:
    constraint, ids = engine.constraint(grammar), tokenizer.encode(json.dumps(value))
    if constraint.count_allowed(ids) < len(ids):
        return False
    for token_id in ids:
        constraint.accept(token_id)
    return tokenizer.eos_ids[0] in allowed_ids(constraint)


def compare(embedded: tuple[Tokenizer, GrammarEngine], schema: Any) -> None:
    tokenizer, engine = embedded
    grammar = engine.check(Asked(form=StructuredOutputs(json=schema)))
    validator = jsonschema.Draft202012Validator(schema)
    for orders in values():
        passes = any(accepts(engine, tokenizer, grammar, value) for value in orders)
        assert passes == validator.is_valid(orders[0]), (schema, orders[0])


A, B, KEY = ({"properties": {name: {"type": "number"}}} for name in NAMES)
KIND = {"properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]}
SCHEMAS: list[Any] = [
    {"not": {"type": "object"}},
    {"not": {"type": ["number", "array", "string"]}},
    {"not": {"const": "abc"}},
    {"not": {"enum": ["", "a", "ax", 1, True, None]}},
    {"type": "string", "not": {"enum": ["abc", "ab", "x y"]}},
    {"type": "number", "not": {"enum": [0, 2.5]}},
    {"not": {"minimum": 1}},
    {"type": "number", "not": {"exclusiveMinimum": 0, "maximum": 1}},
    {"not": {"required": ["a", "b"]}},
    {"not": {"properties": {"a": {"type": "string"}}}},
    {"not": {"anyOf": [{"type": "array"}, {"maxLength": 1}]}},
    {"not": {"not": {"type": "array", "minItems": 2}}},
    {"not": {"allOf": [A, {"required": ["a"]}]}},
    {"not": {"minLength": 2}},
    {"not": {"maxItems": 0}},
    {"if": A | {"required": ["a"]}, "then": {"required": ["b"]}},
    {"if": {"properties": {"a": {"const": 1}}}, "then": B, "else": {"required": ["key"]}},
    {"if": {"type": "string"}, "else": {"type": ["array", "null"]}},
    {"type": "object", **KIND, "if": {"properties": {"a": {"const": "x"}}},
     "then": {"required": ["b"]}, "else": {"properties": {"b": False}}},
    {"then": False},
    {"oneOf": [{"type": "number"}, {}]},
    {"oneOf": [{"required": ["a", "b"]}, {"required": ["a", "key"]}]},
    {"type": "string", "oneOf": [{"minLength": 1}, {"maxLength": 2}]},
    {"oneOf": [True, False, {"type": ["null", "array"]}]},
    {"type": "object", "oneOf": [A | {"required": ["a"]}, {"properties": {"a": {"const": 1}}}]},
    {"dependentRequired": {"a": ["b"], "key": []}},
    {"type": "object", **A, "dependentRequired": {"b": ["a", "key"]}},
    {"dependentSchemas": {"a": {"required": ["b"], "maxProperties": 2}, "key": False}},
    {"propertyNames": {"maxLength": 1}},
    {"propertyNames": {"pattern": "^[ak]"}},
    {"propertyNames": {"minLength": 2, "maxLength": 3}},
    {"type": "object", **KEY, "propertyNames": {"enum": ["key", "b"]}},
    {"propertyNames": False},
    {"propertyNames": {"type": "string", "const": "a"}},
    {"contains": True, "maxContains": 2},
    {"contains": False},
    {"contains": {"type": "integer"}, "minContains": 0},
    {"minContains": 2},
    {"maxItems": 2.0, "minLength": 1.0},
    {**A, "unevaluatedProperties": False},
    {**A, "patternProperties": {"^b": {"type": "string"}}, "unevaluatedProperties": {"const": 1}},
    {"allOf": [A, B], "unevaluatedProperties": False},
    {"allOf": [{**A, "unevaluatedProperties": False}], **B},
    {"$defs": {"a": A}, "$ref": "#/$defs/a", **KEY, "unevaluatedProperties": False},
    {"anyOf": [A | {"required": ["a"]}, B | {"required": ["b"]}], "unevaluatedProperties": False},
    {"if": {"required": ["a"]}, "then": A, "else": B, "unevaluatedProperties": False},
    {"if": A | {"required": ["a"]}, "unevaluatedProperties": False},
    {"dependentSchemas": {"a": B}, **A, "unevaluatedProperties": False},
    {"allOf": [{"additionalProperties": {"const": 1}}], "unevaluatedProperties": False},
    {"prefixItems": [{"const": 1}], "unevaluatedItems": False},
    {"allOf": [{"prefixItems": [True, {"type": "null"}]}], "unevaluatedItems": {"const": "a"}},
    {"anyOf": [{"prefixItems": [{"const": 1}]}, {"items": {"const": "a"}}],
     "unevaluatedItems": False},
    {"items": {"type": "null"}, "unevaluatedItems": False},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_translated_schema_lets_through_what_validates(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any
) -> None:
    compare(embedded, schema)


LEAVES = st.sampled_from(
    (A, B, KEY, True, {"type": "object"}, {"required": ["b"]}, {"type": ["array", "string"]},
     {"minimum": 1}, {"maxLength": 1}, {"prefixItems": [{"const": 1}]}, {"const": "a"})
)  # fmt: skip
KEYWORDS = st.sampled_from(
    ("not", "if", "then", "else", "unevaluatedProperties", "unevaluatedItems", "allOf", "anyOf",
     "dependentSchemas", "properties")
)  # fmt: skip


def _keyword(key: str, inner: list[Any]) -> Any:
    if key in ("allOf", "anyOf"):
        return inner
    return {"a": inner[0]} if key in ("dependentSchemas", "properties") else inner[0]


SMALL = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(
        KEYWORDS, st.lists(inner, min_size=1, max_size=2), min_size=1, max_size=2
    ).map(lambda some: {key: _keyword(key, inner) for key, inner in some.items()}),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(SMALL)
def test_keywords_within_one_another(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any
) -> None:
    assume(isinstance(schema, dict))
    try:
        embedded[1].check(Asked(form=StructuredOutputs(json=schema)))
    except RequestError:
        assume(False)  # refused by name, or nothing could ever match
    compare(embedded, schema)


REFUSED: list[tuple[str, Any]] = [
    ("not", {"not": {"pattern": "a"}}),
    ("not", {"not": {"type": "integer"}}),
    ("if", {"if": {"format": "date"}, "then": False}),
    ("uniqueItems", {"uniqueItems": True}),
    ("contains", {"contains": {"type": "integer"}}),
    ("unevaluatedItems", {"allOf": [{"contains": True}], "unevaluatedItems": False}),
    ("unevaluatedProperties", {"$ref": "#x", "unevaluatedProperties": False}),
    ("propertyNames", {"propertyNames": {"format": "date"}}),
    ("$dynamicRef", {"$dynamicRef": "#x"}),
    ("dependencies", {"dependencies": {}}),
    ("additionalItems", {"additionalItems": False}),
    ("typ", {"typ": "string"}),
]


@pytest.mark.parametrize(("keyword", "inner"), REFUSED)
def test_what_cannot_be_enforced_is_named(keyword: str, inner: Any) -> None:
    fault = in_engine_words({"type": "object", "properties": {"a/b": {"items": inner}}})
    assert isinstance(fault, SchemaFault)
    assert fault.pointer == f"#/properties/a~1b/items/{keyword}"
    assert repr(keyword) in fault.what


def test_a_small_schema_that_writes_out_large_is_refused() -> None:
    """Each definition looks twice into the next."""
    defs: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(7)
    }
    schema = {"$defs": defs | {"d7": True}, "$ref": "#/$defs/d0", "unevaluatedItems": False}
    assert isinstance(in_engine_words(schema), SchemaFault)
