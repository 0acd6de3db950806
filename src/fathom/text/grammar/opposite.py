"""The schema of everything that a schema refuses, where the grammar engine has words for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fathom.text.grammar.schema import REMARKS

KINDS = ("null", "boolean", "number", "string", "array", "object")
_KIND_OF = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string",
            list: "array", dict: "object"}  # fmt: skip
_MAX_TEXT = 100  # groups within groups of a pattern
# keyword: the kind that it speaks of, the keyword of its opposite, and by how much the bound moves
_BOUNDS = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


def without(name: str) -> dict[str, Any]:
    """The schema of what has no property of that name."""
    return {"properties": {name: False}}


def opposite(schema: Any) -> Any:
    """What the schema refuses: a schema that may say `not` of parts of it; None where there are no
    words for it."""
    if not isinstance(schema, dict):
        return not schema
    parts = [
        _opposite_of(key, value)
        for key, value in schema.items()
        if key not in REMARKS and key not in ("$defs", "definitions")
    ]
    if None in parts:
        return None
    return {"anyOf": parts} if parts else False


def are_apart(one: Any, other: Any) -> bool:
    """Whether it is plain that nothing is valid against both."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one is False or other is False
    shared = _kinds_of(one) & _kinds_of(other)
    values = (_values_of(one), _values_of(other))
    if shared == {"string"} and values[0] and values[1]:
        return not any(value in values[1] for value in values[0])
    if shared == {"object"}:
        names = {*one.get("required", ()), *other.get("required", ())}
        inner = (one.get("properties", {}), other.get("properties", {}))
        return any(are_apart(*(some.get(name, True) for some in inner)) for name in names)
    return not shared


def _values_of(schema: dict[str, Any]) -> list[Any]:
    return list(schema.get("enum", ())) or ([schema["const"]] if "const" in schema else [])


def _kinds_of(schema: dict[str, Any]) -> set[str]:
    if values := _values_of(schema):
        return {_KIND_OF[type(value)] for value in values}
    kinds = schema.get("type", KINDS)
    named = {kinds} if isinstance(kinds, str) else set(kinds)
    return {"number" if kind == "integer" else kind for kind in named}


def _opposite_of(key: str, value: Any) -> Any:
    if key in _BOUNDS and type(value) in (int, float):
        kind, bound, step = _BOUNDS[key]
        is_possible = kind == "number" or value + step >= 0
        return {"type": kind, bound: value + step} if is_possible else False
    if key == "not":
        return value
    if key in ("anyOf", "allOf"):
        return {"allOf" if key == "anyOf" else "anyOf": [{"not": inner} for inner in value]}
    if key == "type":
        return _other_kinds(value)
    if key in ("const", "enum"):
        return _other_values([value] if key == "const" else value)
    if key == "required":
        return {"type": "object", "anyOf": [without(name) for name in value]} if value else False
    if key == "properties":
        wrong = [
            {"required": [name], "properties": {name: {"not": inner}}}
            for name, inner in value.items()
        ]
        return {"type": "object", "anyOf": wrong} if wrong else False
    return None


def _other_kinds(value: Any) -> Any:
    kinds = value if isinstance(value, list) else [value]
    if "integer" in kinds and "number" not in kinds:
        return None  # numbers with a fraction that is not zero
    rest = [kind for kind in KINDS if kind not in kinds]
    return {"type": rest} if rest else False


def _other_values(values: Sequence[Any]) -> Any:
    texts = [value for value in values if isinstance(value, str)]
    if any(isinstance(value, dict | list) for value in values):
        return None
    if any(len(text) > _MAX_TEXT for text in texts):
        return None
    options: list[dict[str, Any]] = [{"type": ["array", "object"]}]
    options += [{"type": "null"}] if None not in values else []
    options += [{"const": flag} for flag in (True, False) if not any(v is flag for v in values)]
    numbers = sorted({value for value in values if type(value) in (int, float)})
    for low, high in zip([None, *numbers], [*numbers, None], strict=True):
        between = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        options.append({"type": "number"} | {k: v for k, v in between.items() if v is not None})
    spelled = {"pattern": f"^({_other_texts(texts)})$"} if texts else {}
    return {"anyOf": [*options, {"type": "string", **spelled}]}


def _other_texts(texts: Iterable[str]) -> str:
    """A pattern of every text but these, letter by letter."""
    rests: dict[str, list[str]] = {}
    is_refused = False
    for text in texts:
        if text:
            rests.setdefault(text[0], []).append(text[1:])
        else:
            is_refused = True
    other = f"[^{''.join(map(_letter, rests))}]" if rests else "(?s:.)"
    options = [*([] if is_refused else [""]), f"{other}(?s:.*)"]
    options += [f"{_letter(first)}({_other_texts(rest)})" for first, rest in rests.items()]
    return "|".join(options)


def _letter(letter: str) -> str:
    return letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}"
