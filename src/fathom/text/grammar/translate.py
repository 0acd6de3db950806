"""A schema in the words that the grammar engine has: what it lacks is said in others, exactly.

    dependentRequired, dependentSchemas, if    anyOf of what may hold
    not, and what else and oneOf mean          the opposite of each keyword
    propertyNames                              properties or patterns that leave no other name
    contains                                   minItems and maxItems, where every item counts
    unevaluatedProperties, unevaluatedItems    additionalProperties and items, case by case

What cannot be said exactly is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from math import prod
from operator import and_
from typing import Any
from urllib.parse import unquote

from fathom.text.grammar.opposite import KINDS, are_apart, opposite, without
from fathom.text.grammar.schema import (
    HARMLESS,
    LISTS,
    MAX_SUBSCHEMAS,
    NAMED,
    ONE,
    REMARKS,
    TRANSLATED,
    SchemaFault,
    are_texts,
    escape,
    find_fault,
    subschemas,
)

_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_MAX_CASES = 32
_MAX_REFS = 16


def in_engine_words(schema: Any) -> Any:
    """The schema for the grammar engine, or a SchemaFault: the first thing not to be enforced."""
    fault = find_fault(schema)
    if fault is not None:
        return fault
    try:
        return _Translator(schema).told(schema, "#")
    except _Untold as untold:
        return untold.fault


class _Untold(Exception):
    """There are no words for something."""

    def __init__(self, fault: SchemaFault | None = None) -> None:
        self.fault = fault


@dataclass(frozen=True, slots=True)
class _Case:
    """What a valid instance may be, and what a schema has then looked at: properties by name and
    by pattern, and a number of first items; None: all of them."""

    holds: tuple[Any, ...] = ()
    names: tuple[str, ...] | None = ()
    patterns: tuple[str, ...] = ()
    num_items: int | None = 0

    def __and__(self, other: _Case) -> _Case:
        names = None if self.names is None or other.names is None else self.names + other.names
        one, another = self.num_items, other.num_items
        return _Case(
            self.holds + other.holds,
            names,
            self.patterns + other.patterns,
            None if one is None or another is None else max(one, another),
        )

    def closed(self, key: str, value: Any) -> Any:
        """The schema by which `value` holds for what was not looked at."""
        if key == "unevaluatedItems":
            first = {"prefixItems": [True] * self.num_items} if self.num_items else {}
            return True if self.num_items is None else {**first, "items": value}
        if self.names is None:
            return True
        like = {"patternProperties": dict.fromkeys(self.patterns, True)} if self.patterns else {}
        named = dict.fromkeys(self.names, True)
        return {"properties": named, **like, "additionalProperties": value}


class _Translator:
    """The schemas of one document. `told` and every rule may raise _Untold."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_told = 0
        inner = [one for pointer, one in subschemas(root) if pointer != "#"]
        self._has_ids = any(isinstance(one, dict) and "$id" in one for one in inner)

    def told(self, schema: Any, pointer: str) -> Any:
        """A schema in the engine's words."""
        if not isinstance(schema, dict):
            return schema
        self._num_told += 1
        if self._num_told > MAX_SUBSCHEMAS:
            raise _Untold(SchemaFault(f"over {MAX_SUBSCHEMAS} schemas, written out", pointer))
        kept: dict[str, Any] = {}
        more: list[Any] = []
        for key, value in schema.items():
            at = f"{pointer}/{escape(key)}"
            if key in HARMLESS and value is HARMLESS[key]:
                continue
            if key in _COUNTS and isinstance(value, float) and value.is_integer():
                value = int(value)
            if key in TRANSLATED:
                more += self._instead(schema, key, at)
            elif key == "oneOf" and (apart := self._apart(value, at)) is not None:
                more.append(apart)
            elif key in NAMED and isinstance(value, dict):
                kept[key] = {k: self.told(one, f"{at}/{escape(k)}") for k, one in value.items()}
            elif key in LISTS and isinstance(value, list):
                kept[key] = [self.told(one, f"{at}/{i}") for i, one in enumerate(value)]
            else:
                kept[key] = self.told(value, at) if key in ONE else value
        if more:
            kept["allOf"] = [*kept.get("allOf", ()), *more]
        return kept

    def _instead(self, schema: dict[str, Any], key: str, at: str) -> list[Any]:
        """Schemas that together demand what the keyword does."""
        try:
            instead: Iterable[Any] = ()  # nothing without another keyword, whose rule reads it
            if key.startswith("unevaluated"):
                instead = self._unevaluated(schema, key)
            elif key in _RULES:
                instead = _RULES[key](schema, schema[key])
            return [self.told(one, at) for one in instead if one is not True]
        except _Untold:
            message = f"this use of the keyword {key!r} cannot be enforced"
            raise _Untold(SchemaFault(message, at)) from None

    def _apart(self, options: list[Any], at: str) -> Any:
        """An anyOf in place of a oneOf in which the engine would not see that options are apart;
        None where it will, or where there are no words for it."""
        others = [opposite(option) for option in options]
        if None in others or all(are_apart(*pair) for pair in combinations(options, 2)):
            return None
        alone = [
            {"allOf": [option, *others[:index], *others[index + 1 :]]}
            for index, option in enumerate(options)
        ]
        try:
            return self.told({"anyOf": alone}, at)
        except _Untold:
            return None

    def _unevaluated(self, schema: dict[str, Any], key: str) -> Iterable[Any]:
        if key == "unevaluatedItems":
            _need(not any(isinstance(s, dict) and "contains" in s for _, s in subschemas(schema)))
        rest = {name: value for name, value in schema.items() if name != key}
        cases = self._cases(rest, 0)
        if len(cases) == 1 and not cases[0].holds:
            return [cases[0].closed(key, schema[key])]
        return [{"anyOf": [{"allOf": [*c.holds, c.closed(key, schema[key])]} for c in cases]}]

    def _cases(self, schema: Any, depth: int) -> list[_Case]:
        """Cases of which each valid instance is some: what those look at has been looked at."""
        if not isinstance(schema, dict):
            return [_Case()]
        self._num_told += 1
        _need(depth <= _MAX_REFS and self._num_told <= MAX_SUBSCHEMAS)

        def holding(inner: Any) -> list[_Case]:
            return [_Case((inner,)) & case for case in self._cases(inner, depth + 1)]

        all_names = schema.keys() & {"additionalProperties", "unevaluatedProperties"}
        all_items = schema.keys() & {"items", "unevaluatedItems"}
        own = _Case(
            (),
            None if all_names else tuple(schema.get("properties", ())),
            tuple(schema.get("patternProperties", ())),
            None if all_items else len(schema.get("prefixItems", ())),
        )
        parts = [[own], *(self._cases(inner, depth + 1) for inner in schema.get("allOf", ()))]
        if "$ref" in schema:
            parts.append(self._cases(self._target(schema["$ref"]), depth + 1))
        if "anyOf" in schema:
            parts.append(_some([holding(inner) for inner in schema["anyOf"]]))
        if "oneOf" in schema:
            parts.append([case for inner in schema["oneOf"] for case in holding(inner)])
        if "if" in schema:
            then, otherwise = schema.get("then", True), schema.get("else", True)
            fails = _Case(({"not": schema["if"]},))
            holds = _all([holding(schema["if"]), holding(then)])
            parts.append([*holds, *(fails & case for case in holding(otherwise))])
        for name, inner in schema.get("dependentSchemas", {}).items():
            there = _Case(({"required": [name]},))
            parts.append([_Case((without(name),)), *(there & case for case in holding(inner))])
        return _all(parts)

    def _target(self, ref: Any) -> Any:
        """The schema that a reference within the document means."""
        _need(isinstance(ref, str) and (ref == "#" or ref.startswith("#/")) and not self._has_ids)
        found = self._root
        for part in unquote(ref).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                _need(isinstance(found, dict) and name in found)
                found = found[name]
        _need(find_fault(found) is None)
        return found


def _need(is_so: bool) -> None:
    if not is_so:
        raise _Untold


def _all(parts: Sequence[list[_Case]]) -> list[_Case]:
    """Cases that are one of each part."""
    _need(prod(map(len, parts)) <= _MAX_CASES)
    return [reduce(and_, chosen) for chosen in product(*parts)]


def _some(parts: Sequence[list[_Case]]) -> list[_Case]:
    """Cases that are one of each of some parts."""
    _need(2 ** len(parts) <= _MAX_CASES)
    chosen = (some for n in range(len(parts)) for some in combinations(parts, n + 1))
    return [case for some in chosen for case in _all(some)]


def _dependent_required(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    for name, names in value.items():
        _need(are_texts(names))
        yield {"anyOf": [without(name), {"required": [*names, name]}]}


def _dependent_schemas(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    for name, inner in value.items():
        yield {"anyOf": [without(name), {"allOf": [{"required": [name]}, inner]}]}


def _if(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    then, otherwise = schema.get("then", True), schema.get("else", True)
    if then is not True or otherwise is not True:
        yield {"anyOf": [{"allOf": [value, then]}, {"allOf": [{"not": value}, otherwise]}]}


def _not(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    opposed = opposite(value)
    _need(opposed is not None)
    return [opposed]


def _property_names(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    """Names are texts: a schema of theirs comes down to a list of them, or patterns."""
    if isinstance(value, bool):
        return [value or {"maxProperties": 0}]
    instead: list[dict[str, Any]] = []
    for key, inner in value.items():
        if key in ("const", "enum"):
            values = inner if key == "enum" else [inner]
            names = [name for name in values if isinstance(name, str)]
            instead.append({"properties": dict.fromkeys(names, True)})
        elif key == "pattern" and isinstance(inner, str):
            instead.append({"patternProperties": {inner: True}})
        elif key == "maxLength" or (key == "minLength" and "maxLength" not in value):
            counts = f"{value.get('minLength', 0)},{value.get('maxLength', '')}"
            instead.append({"patternProperties": {f"^(?s:.{{{counts}}})$": True}})
        elif key == "type" and isinstance(inner, str | list):
            instead += [] if "string" in inner else [{"properties": {}}]
        else:
            _need(key in (*REMARKS, "minLength"))
    return [{**one, "additionalProperties": False} for one in instead]


def _contains(schema: dict[str, Any], value: Any) -> Iterable[Any]:
    least, most = schema.get("minContains", 1), schema.get("maxContains")
    if value is True or value == {}:
        return [{"minItems": least} if most is None else {"minItems": least, "maxItems": most}]
    if least == 0 and most is None:
        return []
    _need(value is False)
    return [] if least == 0 else [{"type": [kind for kind in KINDS if kind != "array"]}]


_RULES: dict[str, Callable[[dict[str, Any], Any], Iterable[Any]]] = {
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "if": _if,
    "not": _not,
    "propertyNames": _property_names,
    "contains": _contains,
}
