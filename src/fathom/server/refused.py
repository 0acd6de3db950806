"""Fields and values that clients send and that fathom knows but does not honour: `refused.toml`.

A field is refused by name, unless its value asks for what happens anyway.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_TABLES = Path(__file__).parent / "refused.toml"


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a field is refused, and the values with which it changes nothing."""

    why: str
    harmless: tuple[object, ...] = ()
    fix: str = ""

    def accepts(self, value: object) -> bool:
        """Whether `value` asks for what happens anyway. 1 and True are told apart."""
        return any(type(value) is type(one) and value == one for one in self.harmless)


@dataclass(frozen=True, slots=True)
class Refusals:
    """What a dialect knows but does not honour. Paths are without indices.

    `top`: fields of the body; `inner`: path -> fields of the objects there; `values`: path ->
    values of an honoured field.
    """

    top: Mapping[str, Refused] = field(default_factory=dict)
    inner: Mapping[str, Mapping[str, Refused]] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Refused]] = field(default_factory=dict)


NOTHING_REFUSED = Refusals()


@cache
def refusals(*names: str) -> Refusals:
    """What the tables of these names say together."""
    tables = tomllib.loads(_TABLES.read_text(encoding="utf-8"))
    top: dict[str, Refused] = {}
    inner: dict[str, dict[str, Refused]] = {}
    values: dict[str, dict[str, Refused]] = {}
    for table in (tables[name] for name in names):
        top |= _rows(table.get("fields", {}))
        inner |= {path: _rows(rows) for path, rows in table.get("inner", {}).items()}
        values |= {path: _rows(rows) for path, rows in table.get("values", {}).items()}
    return Refusals(top, inner, values)


def _rows(table: Mapping[str, Any]) -> dict[str, Refused]:
    return {
        name: Refused(row["why"], tuple(row.get("harmless", ())), row.get("fix", ""))
        for names, row in table.items()
        for name in names.split(", ")
    }
