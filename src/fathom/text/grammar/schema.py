"""Which JSON schemas can be enforced: every keyword is either enforced, a remark, or refused here.

The grammar engine ignores keywords that it has never heard of; a reader of the answer would not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from fathom.errors import RequestError

MAX_DEPTH = 64
MAX_SUBSCHEMAS = 20_000
EXACT = 2**53  # integers below it are doubles
MAX_CHAIN = 1000  # levels of references that lead on; the engine follows them on its stack
# What the engine has no word for; `translate` says it in others.
TRANSLATED = frozenset(
    {"dependentRequired", "dependentSchemas", "if", "then", "else", "not", "propertyNames"}
    | {"contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems"}
)
# Where a schema's keyword holds further schemas.
ONE = frozenset(
    {"additionalProperties", "items", "if", "then", "else", "not", "propertyNames", "contains"}
    | {"unevaluatedProperties", "unevaluatedItems"}
)
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
ENFORCED = frozenset(
    {"type", "enum", "const", "required", "minProperties", "maxProperties"}
    | {"minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum"}
    | {"exclusiveMinimum", "exclusiveMaximum", "multipleOf", "$ref", "$id", "$anchor"}
    | TRANSLATED
    | ONE
    | LISTS
    | NAMED
)
# Keywords of numbers that the engine reads as doubles; counts it reads as integers.
NUMBERS = frozenset(
    {"const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
# What says something about a value and demands nothing of it.
REMARKS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly"}
    | {"writeOnly", "$comment", "$schema", "$vocabulary", "contentEncoding", "contentMediaType"}
    | {"contentSchema"}
)
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
# Keywords with which a schema asks for what happens anyway.
HARMLESS: Mapping[str, object] = {"uniqueItems": False, "nullable": False}


@dataclass(frozen=True, slots=True)
class SchemaFault:
    """What is wrong with a schema; `pointer` is a JSON pointer to it, as a URI fragment."""

    what: str
    pointer: str

    def error(self, field: str) -> RequestError:
        """The error about the request's field."""
        return RequestError(
            f"{field}: {self.what}",
            param=field,
            code="unsupported_schema",
            found=f"at {self.pointer}",
        )


def parse_schema(text: str, field: str) -> Any:
    """The schema in `text`. Raises: RequestError where it is no JSON, or no object or boolean."""
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{field} is not JSON", param=field, found=str(error)[:200]) from None
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{field} is not a schema", param=field, wanted="an object")
    return schema


def find_fault(schema: Any) -> SchemaFault | None:
    """The first thing in a schema that cannot be enforced and is not just a remark."""
    for count, (pointer, inner) in enumerate(subschemas(schema)):
        if count >= MAX_SUBSCHEMAS or pointer.count("/") > 2 * MAX_DEPTH:
            limit = f"{MAX_SUBSCHEMAS} schemas in it, {MAX_DEPTH} deep"
            return SchemaFault(f"the schema is larger than {limit}", pointer)
        fault = _fault_of(inner, pointer)
        if fault is not None:
            return fault
    return _long_chain(schema)


def _long_chain(schema: Any) -> SchemaFault | None:
    """The reference with which following one after the other, as the engine does, gets too deep."""
    places = list(subschemas(schema))
    starts = {pointer: index for index, (pointer, _) in enumerate(places)}
    waiting, seen = [("#", 0)], set()
    while waiting:
        target, depth = waiting.pop()
        if target in seen or target not in starts:
            continue
        seen.add(target)
        found = []
        for index in range(starts[target], len(places)):
            pointer, inner = places[index]
            if pointer != target and not pointer.startswith(f"{target}/"):
                break
            if isinstance(inner, dict) and isinstance(inner.get("$ref"), str):
                level = depth + 1 + pointer.count("/") - target.count("/")
                if level > MAX_CHAIN:
                    what = f"references lead on from one to the other over {MAX_CHAIN} levels deep"
                    return SchemaFault(what, f"{pointer}/$ref")
                found.append((unquote(inner["$ref"]), level))
        waiting += reversed(found)
    return None


def subschemas(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every schema in `schema`, itself first, with its pointer."""
    waiting: list[tuple[str, Any]] = [("#", schema)]
    while waiting:
        pointer, inner = waiting.pop()
        yield pointer, inner
        if isinstance(inner, dict):
            waiting.extend(reversed(list(_children(inner, pointer))))


def _children(schema: dict[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        at = f"{pointer}/{escape(key)}"
        if key in NAMED and isinstance(value, dict):
            yield from ((f"{at}/{escape(name)}", inner) for name, inner in value.items())
        elif key in LISTS and isinstance(value, list):
            yield from ((f"{at}/{index}", inner) for index, inner in enumerate(value))
        elif key in ONE:
            yield at, value


def _fault_of(schema: Any, pointer: str) -> SchemaFault | None:
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return SchemaFault("a schema is an object, true or false", pointer)
    for key, value in schema.items():
        at = f"{pointer}/{escape(key)}"
        if key in HARMLESS and value is HARMLESS[key]:
            continue
        is_known = key in ENFORCED or key in REMARKS
        if not is_known and (key == "x-guidance" or not key.startswith("x-")):
            return SchemaFault(f"the keyword {key[:100]!r} cannot be enforced", at)
        for keys, has_shape, shape in _SHAPES:
            if key in keys and not has_shape(value):
                return SchemaFault(f"{key} is not {shape}", at)
        if key in NUMBERS and (place := _inexact(value, at)):
            what = "a number that the grammar engine would round; it keeps 15 digits"
            return SchemaFault(what, place)
        if key == "format" and (not isinstance(value, str) or value not in FORMATS):
            return SchemaFault(
                f"the format {str(value)[:100]!r} cannot be enforced, "
                f"unlike {', '.join(sorted(FORMATS))}",
                at,
            )
        elif key == "items" and isinstance(value, list):
            return SchemaFault("a list of items is called prefixItems since draft 2020-12", at)
        elif key == "minProperties" and _may_repeat(schema, value):
            return SchemaFault("minProperties over 1 cannot be enforced: names could repeat", at)
    return None


def _inexact(value: Any, pointer: str) -> str:
    """Where in `value` a number is that the grammar engine could write as another one."""
    waiting = [(pointer, value)]
    while waiting:
        at, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += ((f"{at}/{escape(key)}", one) for key, one in inner.items())
        elif isinstance(inner, list):
            waiting += ((f"{at}/{index}", one) for index, one in enumerate(inner))
        elif _is_number(inner) and not _is_exact(inner):
            return at
    return ""


def _is_exact(number: float) -> bool:
    """Whether its digits and its power of ten are doubles themselves: then the one divided by the
    other is the double nearest to it, and the engine looks no closer (W. Clinger, "How to read
    floating point numbers accurately")."""
    if isinstance(number, int) or abs(number) >= EXACT:
        return abs(number) < EXACT
    _, digits, power = Decimal(repr(number)).as_tuple()
    significand = int("".join(map(str, digits)))
    return float(significand) == significand and int(power) >= -22


def _may_repeat(schema: dict[str, Any], least: Any) -> bool:
    """Whether names that are not required would have to count, which may come twice."""
    required = schema.get("required", ())
    num_required = len(required) if isinstance(required, list) else 0
    return isinstance(least, int | float) and least > max(1, num_required)


def are_texts(value: object) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SHAPES: tuple[tuple[frozenset[str], Callable[[Any], bool], str], ...] = (
    (NAMED | {"dependentRequired"}, lambda value: isinstance(value, dict), "an object"),
    (LISTS | {"enum"}, lambda value: isinstance(value, list), "a list"),
    (frozenset({"required"}), are_texts, "a list of names"),
    (frozenset({"multipleOf"}), lambda value: _is_number(value) and value > 0, "a number over 0"),
    (frozenset({"type"}), lambda value: isinstance(value, str) or are_texts(value), "a type"),
)


def escape(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901, section 3)."""
    return key[:200].replace("~", "~0").replace("/", "~1")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
