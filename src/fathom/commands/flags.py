"""Flags from the fields of config dataclasses: one documented field, one flag with its aliases."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, get_type_hints

from fathom.errors import ConfigError
from fathom.units import parse_auto_count, parse_bytes, parse_count

ConfigT = TypeVar("ConfigT")


class FlagParser(argparse.ArgumentParser):
    """argparse with exact names, errors of our own kind, and underscores for dashes."""

    def __init__(self, command: str, doc: str) -> None:
        super().__init__(
            prog=f"fathom {command}",
            description=doc,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._also_known: tuple[str, ...] = ()

    def know(self, names: Iterable[str]) -> None:
        """Names that count as near ones of a misspelt flag."""
        self._also_known = tuple(names)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The values. Raises: ConfigError; for an unknown flag with the nearest known one."""
        known = set(self._option_string_actions)
        exact = [_with_dashes(argument, known) for argument in arguments]
        namespace, rest = self.parse_known_args(exact)
        if rest:
            self._refuse(rest[0])
        return namespace

    def _refuse(self, argument: str) -> NoReturn:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            raise ConfigError(f"there is one argument too many: {argument!r}")
        near = get_close_matches(
            name, [*self._option_string_actions, *self._also_known], n=1, cutoff=0.6
        )
        raise ConfigError(
            f"unknown flag {name}",
            fix=f"did you mean {near[0]}?" if near else f"see {self.prog} --help",
        )

    def error(self, message: str) -> NoReturn:
        """Raises: ConfigError, where argparse would exit."""
        raise ConfigError(message, fix=f"see {self.prog} --help")


def add_flags(
    parser: FlagParser, config: type[Any], title: str, *, skip: Sequence[str] = ()
) -> None:
    """A flag for each field of dataclass `config`. A flag that is not given leaves no value."""
    group = parser.add_argument_group(title)
    hints = get_type_hints(config)
    for one in fields(config):
        if one.name not in skip:
            _add_flag(group, one, hints[one.name])


def from_flags(config: type[ConfigT], namespace: argparse.Namespace, **more: Any) -> ConfigT:
    """An instance with the flags that were given, and `more`. Raises: ConfigError."""
    names = {one.name for one in fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(namespace).items() if name in names}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return config(**{**given, **lists, **more})


def _add_flag(group: argparse._ArgumentGroup, one: Field[Any], hint: object) -> None:
    names = one.metadata["flags"]
    options: dict[str, Any] = {
        "dest": one.name,
        "default": argparse.SUPPRESS,
        "help": _help(one),
    }
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif hint == tuple[str, ...]:
        options["metavar"] = names[0].rpartition("-")[2].upper()
        # A key is one argument: a list of them would swallow the model's name.
        repeats = {"action": "append"} if "key" in one.name else {"action": "extend", "nargs": "+"}
        options |= repeats
    else:
        options["type"] = converter(one, hint)
        options["metavar"] = one.metadata["unit"].upper() or names[0].rpartition("-")[2].upper()
    group.add_argument(*names, **options)


def _help(one: Field[Any]) -> str:
    parts = [one.metadata["doc"]]
    if one.metadata["wanted"]:
        parts.append(f"Wanted: {one.metadata['wanted']}.")
    if one.default not in (None, (), MISSING):
        parts.append(f"Default: {one.default}.")
    return " ".join(parts).replace("%", "%%")


def converter(one: Field[Any], hint: object) -> Callable[[str], Any]:
    """From the text of a flag to the field's type. Raises (when called): ConfigError."""
    flag = one.metadata["flags"][0]
    if one.metadata["unit"] == "bytes":
        return lambda text: parse_bytes(text, flag)
    if hint == int | None:
        return lambda text: parse_auto_count(text, flag)
    if hint is int:
        return lambda text: _signed_count(text, flag, one.metadata["wanted"])
    if hint in (float, float | None):
        return lambda text: _real(text, flag)
    return str


def _signed_count(text: str, flag: str, wanted: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    try:
        return sign * parse_count(digits, flag)
    except ConfigError as error:
        raise ConfigError(flag, found=repr(text), wanted=wanted or error.wanted) from None


def _real(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(flag, found=repr(text), wanted="a number") from None


def _with_dashes(argument: str, known: set[str]) -> str:
    """`--max_model_len` as `--max-model-len`, which vLLM and SGLang allow."""
    name, equals, value = argument.partition("=")
    dashed = name.replace("_", "-")
    return dashed + equals + value if name not in known and dashed in known else argument
