"""Settings from a TOML file, `[engine]` and `[server]` with the names of the config's fields. Flags
win over the file."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from dataclasses import Field, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from fathom.commands.files import read_text
from fathom.commands.flags import converter
from fathom.errors import ConfigError

# A file is copied, committed and shown to others.
_SECRET = "api_key"


def apply_file(namespace: argparse.Namespace, path: str, tables: Mapping[str, type[Any]]) -> None:
    """Put the file's settings where no flag was given. `tables`: the config of each table.

    Raises: ConfigError for a file that cannot be read, for an unknown name with the nearest one,
    and for a value of the wrong type.
    """
    for name, config in tables.items():
        for key, value in _read(path, tables).get(name, {}).items():
            known = {one.name: one for one in fields(config)}
            where = f"{path}: [{name}] {key}"
            if key == _SECRET:
                fix = "the environment's FATHOM_API_KEY"
                raise ConfigError(where, found="a key in a file", wanted="none here", fix=fix)
            if key not in known:
                near = get_close_matches(key, known, 1)
                raise ConfigError(
                    f"{where}: there is no such setting",
                    fix=f"did you mean {near[0]}?" if near else "see docs/reference/flags.md",
                )
            if not hasattr(namespace, key):
                hint = get_type_hints(config)[key]
                setattr(namespace, key, _converted(value, known[key], hint))


def write_toml(tables: Mapping[str, Mapping[str, object]], comments: list[str]) -> str:
    """A document of flat tables, under comments."""
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _read(path: str, tables: Mapping[str, type[Any]]) -> dict[str, Any]:
    try:
        document = tomllib.loads(read_text("--config", path, "a TOML file"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {path}", found=str(error), wanted="a TOML file") from error
    for name, table in document.items():
        if name not in tables or not isinstance(table, dict):
            wanted = " and ".join(f"[{one}]" for one in tables)
            raise ConfigError(f"{path}: {name}", wanted=f"settings in the tables {wanted}")
    return document


def _converted(value: object, one: Field[Any], hint: object) -> object:
    """Text is read as the flag's would be; a list is one of names."""
    if isinstance(value, str) and hint not in (str, str | None):
        return [value] if hint == tuple[str, ...] else converter(one, hint)(value)
    return value


def _quoted(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 32 else c for c in text) + '"'
    return str(value)
