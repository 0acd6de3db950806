"""Compares masks with every string up to a length, judged by `re`, `json` and `jsonschema`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import jsonschema
import pytest

from fathom.core.types import StructuredOutputs
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine
from fathom.text.tokenizer import Tokenizer
from tests.text.grammar.walks import all_prefixes


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> GrammarEngine:
    return GrammarEngine(tokenizer)


def strings(words: Iterable[str], most: int) -> set[str]:
    """Every text of up to `most` words."""
    return {"".join(s) for n in range(most + 1) for s in itertools.product(words, repeat=n)}


def grammar(engine: GrammarEngine, **form: Any) -> str:
    return engine.check(Asked(form=StructuredOutputs(**form)))


REGEXES = [
    ("(ab|ba?){0,2}c?", ["a", "b", "c"], 5),
    ("[a-c]{2}|ac*b{3}", ["a", "b", "c"], 8),
    ("the( quick){0,2}( the)?", ["the", " quick", " the", " "], 4),
    ("(你|好){1,2}", ["你", "好"], 3),
    (r"[0-2]{1,2}\.[05]", list("0125."), 4),
]


@pytest.mark.parametrize(("pattern", "words", "num_words"), REGEXES)
def test_masks_allow_exactly_what_can_become_a_match(
    engine: GrammarEngine, tokenizer: Tokenizer, pattern: str, words: list[str], num_words: int
) -> None:
    """`words` are such that every match of the pattern is at most `num_words` of them, or, where
    it has no end, every match that is looked at."""
    texts = strings(words, num_words)
    language = {text.encode() for text in texts if re.fullmatch(pattern, text)}
    special = set(tokenizer.special_ids.values())
    tokens = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in special}
    max_bytes = min(4, max(map(len, language))) if "*" in pattern else 24
    for prefix, allowed, may_end in all_prefixes(engine, tokenizer, grammar(engine, regex=pattern),
                                                 max_bytes):  # fmt: skip
        starts = {t for t in tokens if t and any(s.startswith(prefix + t) for s in language)}
        rest = [text for text in language if text.startswith(prefix)]
        if len(allowed) == 1 and all(text.startswith(prefix + min(allowed)) for text in rest):
            continue  # forced: of several tokens the one that the tokenizer would take
        assert allowed == starts, prefix
        assert may_end == (prefix in language), prefix


SCHEMAS: list[tuple[Any, str, int]] = [
    ({"type": "boolean"}, "truefals", 5),
    ({"enum": [1, "1", None]}, '1"nul', 4),
    ({"type": "integer", "minimum": 2, "maximum": 21}, "0123-", 3),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "01.5", 4),
    ({"type": "integer", "multipleOf": 3}, "0123-", 3),
    ({"type": "string", "maxLength": 2, "pattern": "^a?b?$"}, '"abc', 5),
    ({"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2}, "[]12,", 5),
    ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, "[]12,", 5),
    ({"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
     '{}"a:1', 7),
    ({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
      "additionalProperties": False}, '{}"a:1', 7),
    ({"anyOf": [{"const": 1}, {"type": "array", "maxItems": 1, "items": {"const": 2}}]}, "[]12", 3),
    ({"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 12}]}, "0123-", 3),
    ({"$defs": {"l": {"type": "array", "items": {"$ref": "#/$defs/l"}, "maxItems": 1}},
      "$ref": "#/$defs/l"}, "[],", 6),
    ({"type": "object", "patternProperties": {"^a$": {"const": 1}}, "maxProperties": 1,
      "additionalProperties": False}, '{}"a:1', 7),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "alphabet", "max_len"), SCHEMAS)
def test_what_a_schema_lets_through_is_what_validates(
    engine: GrammarEngine, tokenizer: Tokenizer, schema: Any, alphabet: str, max_len: int
) -> None:
    """White space apart, which the alphabets leave out: what has some need only validate."""
    accepted = set()
    text = grammar(engine, json=schema)
    for prefix, _, may_end in all_prefixes(engine, tokenizer, text, max_len):
        if may_end:
            accepted.add(prefix.decode())
    validator = jsonschema.Draft202012Validator(schema)
    for text in accepted:
        validator.validate(json.loads(text))
    compact = {text for text in accepted if set(text) <= set(alphabet)}
    assert compact == {text for text in strings(set(alphabet), max_len) if _fits(text, validator)}


def _fits(text: str, validator: Any) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    # Of 0.5 and 0.50 under a bound, the engine writes the first.
    is_written = text == text.strip() and not re.fullmatch(r"-?\d+\.\d*[1-9]0+", text)
    return is_written and validator.is_valid(value)
