"""What a template in Jinja may do: look, choose and put together, for a while and so much of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1 << 24
"""Characters that a prompt, or one operation in a template, may have."""
_MAX_ITEMS = 1 << 17  # of a list that an operation makes: a filter does not ask for the time
_MAX_INDENT = 16
# Methods of texts and numbers that make as much as they are told to, or bytes, which have more.
_METHODS_OUT = frozenset(
    (
        *("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"),
        *("encode", "to_bytes"),
    )
)
_FILTERS_OUT = (
    *("batch", "center", "format", "indent", "pprint", "random", "round", "slice", "urlize"),
    *("wordwrap", "xmlattr"),
)


class Sandbox(ImmutableSandboxedEnvironment):
    """Every loop, call and look-up asks whether time is up; text cannot be multiplied at will."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self.check: Callable[[], None] = lambda: None
        for name in _FILTERS_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"tojson": _to_json, "replace": _replace, "join": self._joined}
        self.filters |= {"_watched": self._watched, "_sized": _sized}
        self.globals["raise_exception"] = _refuse

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_watched", [], [], None, None)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [nodes.Filter(x, "_sized", [], [], None, None) for x in joined.nodes]
        return tree

    def _watched(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.check()
            yield item

    def _joined(self, items: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        """As Jinja's filter, which calls what goes between `d`."""
        part: Callable[[Any], Any] = str if attribute is None else make_attrgetter(self, attribute)
        return _join(str(d), map(part, items))

    def concat(self, parts: Iterable[str]) -> str:
        """What a macro or a block is made of."""
        return _join("", parts)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        _, function, *given = args
        bounded = _METHODS.get(getattr(function, "__name__", ""))
        if bounded is not None and isinstance(text := getattr(function, "__self__", None), str):
            return bounded(text, *given, **kwargs)
        return super().call(*args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: no text has a `format`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_out = isinstance(obj, str | int) and attr in _METHODS_OUT
        return not is_out and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            for kind, most in ((str, MAX_TEXT), (list, _MAX_ITEMS), (tuple, _MAX_ITEMS)):
                _allow(*(len(side) for side in (left, right) if isinstance(side, kind)), most=most)
        elif operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"{operator} is not allowed")
        elif operator == "*":
            many = isinstance(left, list | tuple) or isinstance(right, list | tuple)
            sizes = [
                abs(side) if isinstance(side, int) else len(side)
                for side in (left, right)
                if isinstance(side, int | str | list | tuple)
            ]
            if len(sizes) == 2:
                _allow(sizes[0] * sizes[1], most=_MAX_ITEMS if many else MAX_TEXT)
        return super().call_binop(context, operator, left, right)


def _allow(*sizes: int, most: int = MAX_TEXT) -> None:
    """Raises: SecurityError where what is about to be made is too large."""
    if sum(sizes) > most:
        raise SecurityError(f"no text or list may be made of more than {most} parts")


def _sized(value: Any) -> Any:
    """A part of a text that is put together."""
    _allow(len(value) if isinstance(value, str) else 0)
    return value


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """As Jinja's filter and as the method."""
    whole, old, new = str(text), str(old), str(new)
    _allow(len(whole), (whole.count(old) + 1) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _join(between: str, items: Iterable[Any]) -> str:
    texts = [str(item) for item in items]
    _allow(*map(len, texts), len(texts) * len(between))
    return between.join(texts)


_METHODS: Mapping[str, Callable[..., str]] = {"replace": _replace, "join": _join}


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As transformers' filter: no HTML escapes, and text as it is."""
    _allow(indent or 0, most=_MAX_INDENT)
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)
