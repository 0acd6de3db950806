"""What form an answer must have, as it was asked: vLLM's `structured_outputs`, checked for shape.

Whether a schema or a grammar is right, and what can be enforced, `text.grammar` says.
"""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fathom.errors import RequestError

MAX_GRAMMAR_CHARS = 4 * 1024 * 1024  # a server allows less: `server/limits.py`
MAX_CHOICES = 4096
# Fields that say the form: exactly one of them is given.
FORMS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """The form of an answer: exactly one of `FORMS`. vLLM's names and meanings.

    `json` a schema and `structural_tag` vLLM's tags, as an object or its text; `regex` in Rust's
    syntax, matched whole; `choice` some texts; `grammar` in Lark or GBNF. White space in JSON is a
    space or a line break with its indent, `whitespace_pattern` otherwise; with
    `disable_any_whitespace` it is one space after a colon or comma and no other. `param` is the
    request's field that errors name.

    An instance is in normal form: objects became JSON text, lists tuples.
    Raises: RequestError.
    """

    json: str | Mapping[str, Any] | bool | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    param: str = "structured_outputs"

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if self.json is False:
            given.insert(0, "json")
        if len(given) != 1:
            raise RequestError(
                f"{self.param} must say one form",
                param=self.param,
                found=", ".join(given) or "none",
                wanted=f"one of {', '.join(FORMS)}",
            )
        for name in ("json", "structural_tag"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, self._as_text(name, value))
        object.__setattr__(self, "choice", self._choices())
        for name in (*FORMS[2:3], "grammar", "json", "structural_tag", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise self._wrong(name, type(value).__name__, "text")
            if value is not None and len(value) > MAX_GRAMMAR_CHARS:
                raise self._wrong(
                    name, f"{len(value)} characters", f"at most {MAX_GRAMMAR_CHARS} characters"
                )
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, repr(getattr(self, name))[:80], "true or false")

    @property
    def field(self) -> str:
        """The request's field that holds the form."""
        given = (name for name in FORMS if getattr(self, name) not in (None, False))
        return self.field_path(next(given, "json"))

    @property
    def num_chars(self) -> int:
        """The length of the form, as text."""
        texts = (self.json, self.regex, *(self.choice or ()), self.grammar, self.structural_tag)
        return sum(len(text) for text in texts if isinstance(text, str))

    def field_path(self, name: str) -> str:
        """The request's field that holds `name`."""
        return f"{self.param}.{name}" if self.param == "structured_outputs" else self.param

    def _as_text(self, name: str, value: object) -> str:
        if not isinstance(value, Mapping | bool):
            raise self._wrong(name, type(value).__name__, "an object, or its text")
        try:
            return json_text.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._wrong(name, str(error)[:200], "JSON") from None

    def _choices(self) -> tuple[str, ...] | None:
        value: object = self.choice
        if value is None:
            return None
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        items: tuple[object, ...] = tuple(value) if is_list else ()  # type: ignore[arg-type]
        texts = tuple(item for item in items if isinstance(item, str) and item)
        if not texts or len(texts) < len(items):
            raise self._wrong("choice", repr(value)[:80], "a list of texts, none of them empty")
        if len(texts) > MAX_CHOICES or sum(map(len, texts)) > MAX_GRAMMAR_CHARS:
            raise self._wrong("choice", f"{len(texts)} texts", f"at most {MAX_CHOICES}")
        return texts

    def _wrong(self, name: str, found: str, wanted: str) -> RequestError:
        field = self.field_path(name)
        return RequestError(f"{field} is not valid", param=field, found=found, wanted=wanted)


def as_structured_outputs(value: object) -> StructuredOutputs | None:
    """The form that callers pass: None, an instance, or a mapping of its fields.

    Raises: RequestError, for an unknown field too.
    """
    if value is None or isinstance(value, StructuredOutputs):
        return value
    known = {item.name for item in fields(StructuredOutputs)} - {"param"}
    if not isinstance(value, Mapping):
        raise RequestError(
            "structured_outputs is not valid",
            param="structured_outputs",
            found=type(value).__name__,
            wanted="an object",
        )
    for name in value:
        if name not in known:
            raise RequestError(
                f"structured_outputs.{str(name)[:100]} is not a field of it",
                param="structured_outputs",
                code="unknown_parameter",
                wanted=", ".join(sorted(known)),
            )
    return StructuredOutputs(**value)
