"""From the bytes of a body to a struct of a dialect, or to an error that names the field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from fathom.errors import RequestError, not_valid
from fathom.server.refused import NOTHING_REFUSED, Refusals, Refused

RequestT = TypeVar("RequestT", bound=msgspec.Struct)

_WHERE = re.compile(r" - at `\$\.?(.*)`$")


def decode(
    body: bytes,
    kind: type[RequestT],
    refusals: Refusals = NOTHING_REFUSED,
    warnings: list[str] | None = None,
) -> RequestT:
    """The request in `body`. A null stands for a field that was not sent.

    `warnings`: where given, fields that would be refused or are unknown are left out and told here.
    Raises: RequestError that names the field at fault, and for an unknown one the nearest known.
    """
    return read(_parse(body), kind, refusals, warnings)


def read(
    raw: object,
    kind: type[RequestT],
    refusals: Refusals = NOTHING_REFUSED,
    warnings: list[str] | None = None,
    where: str = "",
    *,
    is_text: bool = False,
) -> RequestT:
    """The same from what JSON was parsed to; `where` is its path in the body. `is_text`: numbers
    are written as text, as in a query."""
    if not isinstance(raw, dict):
        raise RequestError(
            f"{where or 'the body'} is not a JSON object",
            param=where or None,
            found=_json_type(raw),
        )
    cleaned = _Check(refusals, warnings).fields(raw, kind, refusals.top, where, "")
    request: RequestT = _converted(cleaned, kind, where, strict=not is_text)
    return request


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise RequestError("the body is empty", code="invalid_json", wanted="a JSON object")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise RequestError(
            "the body is not UTF-8",
            code="invalid_json",
            found=f"byte 0x{error.object[error.start]:02x}, {error.reason}",
            wanted="JSON in UTF-8",
        ) from None
    except msgspec.MsgspecError as error:
        raise RequestError(
            "the body is not JSON", code="invalid_json", found=_WHERE.sub("", str(error))
        ) from None


@dataclass(frozen=True, slots=True)
class _Check:
    """Looks at fields one by one, before their types are looked at.

    `where` is a place in the body, `path` the same in the object whose inner paths `refusals` has,
    without indices.
    """

    refusals: Refusals
    warnings: list[str] | None

    def fields(
        self,
        raw: dict[str, Any],
        kind: type[msgspec.Struct],
        table: Mapping[str, Refused],
        where: str,
        path: str,
    ) -> dict[str, Any]:
        """`raw` without nulls and harmless fields, its inner objects likewise.

        Raises: RequestError for fields that are refused or unknown, unless they are warned of.
        """
        known, values = _children(kind), self.refusals.values
        place, inside = f"{where}." if where else "", f"{path}." if path else ""
        cleaned: dict[str, Any] = {}
        # What an object is, by its type, says what else may be in it.
        for name, value in sorted(raw.items(), key=lambda item: item[0] != "type"):
            if name not in known:
                entry = table.get(name)
                if value is None and entry is not None:
                    continue
                if entry is None or not entry.accepts(value):
                    error = _refusal(place + name, name, entry, [*known, *table])
                    if self.warnings is None:
                        raise error
                    self.warnings.append(str(error))
            elif value is not None:
                if isinstance(value, str) and (refused := values.get(inside + name)):
                    _check_value(refused, value, place + name)
                if name == "type":
                    _converted(value, _hints(kind)[name], place + name)
                inner = known[name]
                cleaned[name] = (
                    value
                    if inner is None
                    else self._inner(value, inner, place + name, inside + name)
                )
        return cleaned

    def _inner(self, value: Any, kind: type[msgspec.Struct], where: str, path: str) -> Any:
        if isinstance(value, list):
            return [self._inner(one, kind, f"{where}[{i}]", path) for i, one in enumerate(value)]
        if isinstance(value, dict):
            return self.fields(value, kind, self.refusals.inner.get(path, {}), where, path)
        return value


def _check_value(refused: Mapping[str, Refused], value: str, where: str) -> None:
    entry = refused.get(value)
    if entry is not None:
        raise RequestError(
            f"{where}: {entry.why}",
            param=where,
            code="unsupported_value",
            found=value,
            fix=entry.fix,
        )


def _refusal(where: str, name: str, entry: Refused | None, names: list[str]) -> RequestError:
    if entry is not None:
        return RequestError(
            f"{where} is not supported: {entry.why}",
            param=where,
            code="unsupported_parameter",
            fix=entry.fix,
        )
    near = get_close_matches(name[:100], names, n=1, cutoff=0.6)  # it costs more than its length
    return RequestError(
        f"unknown field {where[:200]}",
        param=where[:200],
        code="unknown_parameter",
        fix=f"did you mean {near[0]}?" if near else "",
    )


def _converted(raw: Any, kind: Any, where: str, *, strict: bool = True) -> Any:
    """`raw`, which stands at `where`, as a `kind`. Raises: RequestError."""
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error), kind, where) from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None


def _shape_error(message: str, kind: Any, where: str) -> RequestError:
    """msgspec's message about a `kind`, with the field's path taken out of it."""
    match = _WHERE.search(message)
    text = _WHERE.sub("", message).replace("`", "")
    missing = re.fullmatch(r"Object missing required field (\w+)", text)
    unknown = re.fullmatch(r"Invalid enum value (.*)", text, re.DOTALL)
    path = match[1] if match else ""
    wanted = ", ".join(_words(_annotation(kind, path))) if unknown else ""
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        text = "required, but not there"
    if where:
        path = f"{where}.{path}" if path else where
    if unknown:
        return not_valid(path, found=unknown[1][:100], wanted=wanted)
    return RequestError(
        f"{path or 'the body'}: {text[:1].lower()}{text[1:]}",
        param=path or None,
        code="missing_required_parameter" if missing else "invalid_type",
    )


@cache
def _children(kind: type[msgspec.Struct]) -> Mapping[str, type[msgspec.Struct] | None]:
    """Each field of `kind`, with the struct of the objects in it, if it holds objects."""
    hints = _hints(kind)
    return {name: next(_structs(hints[name]), None) for name in kind.__struct_fields__}


@cache
def _hints(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _annotation(kind: Any, path: str) -> Any:
    """What may stand at a path of msgspec's in a `kind`, or in the lists there."""
    for name in re.findall(r"\w+", re.sub(r"\[[^\]]*\]", "", path)):
        kind = _hints(next(_structs(kind)))[name]
    return kind


def _words(annotation: Any) -> Iterator[str]:
    """What an annotation with a Literal in it leaves to choose from."""
    if get_origin(annotation) is Literal:
        yield from map(repr, get_args(annotation))
    elif annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is dict or next(_structs(annotation), None) is annotation:
        yield "an object"
    else:
        for argument in get_args(annotation):
            yield from _words(argument)


def _structs(annotation: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    for argument in get_args(annotation):
        yield from _structs(argument)


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
