"""Rows of the hardware tables, from the CSV files in `tables/` and from a user's TOML.

Columns carry their unit (`memory_mib`, `bf16_tflops`); fields are in bytes, FLOPs and seconds.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any, get_args, get_type_hints

from fathom.errors import ConfigError
from fathom.spec.hardware import Cpu, Gpu, Link

# Column suffix: field suffix, factor.
_UNITS = {
    "_mib": ("_bytes", 2**20),
    "gb_s": ("bytes_s", 1e9),
    "_tflops": ("_flops", 1e12),
    "_tops": ("_ops", 1e12),
    "_ghz": ("_hz", 1e9),
    "_mt_s": ("_s", 1e6),
}
_MAY_BE_ZERO = ("sm", "nvlink_bytes_s")
ROW_TYPES: dict[str, type[Any]] = {"gpu": Gpu, "cpu": Cpu, "link": Link}


def read_table(kind: str) -> tuple[Any, ...]:
    """The rows of a kind (gpu, cpu or link) that come with fathom."""
    name = f"{kind}s.csv"
    text = resources.files("fathom.spec").joinpath("tables", name).read_text(encoding="utf-8")
    return tuple(
        _row(kind, row, {}, f"{name}: {row['id']}") for row in csv.DictReader(text.splitlines())
    )


def read_tables(text: str, kinds: Iterable[str], where: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of a TOML document by their kinds. Raises: ConfigError that names `where`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML", found=str(error)) from error
    refuse_unknown(document, kinds, where)
    found = {kind: document.get(kind, []) for kind in kinds}
    for kind, tables in found.items():
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise ConfigError(f"{where}: {kind}", wanted=f"tables that start with [[{kind}]]")
    return found


def merged(
    kind: str, known: tuple[Any, ...], tables: list[dict[str, object]], where: str
) -> tuple[Any, ...]:
    """The rows `known` with a user's `tables` over them; `where` names their document.

    Raises: ConfigError that names the table and the column at fault.
    """
    rows = {row.id: row for row in known}
    for number, table in enumerate(tables, 1):
        name = str(table.get("id", ""))
        place = f"{where}: {kind} {number}" + (f" ({name})" if name else "")
        if not name:
            raise ConfigError(f"{place}: id", wanted="the id of a row to change or to add")
        like = str(table.pop("like", name))
        if like != name and like not in rows:
            near = ", ".join(get_close_matches(like, rows, 3, 0.5) or rows)
            raise ConfigError(f"{place}: like", found=repr(like), wanted=f"one of {near}")
        base: dict[str, Any] = {"source": where, "note": ""}
        if like in rows:
            base |= {one.name: getattr(rows[like], one.name) for one in fields(ROW_TYPES[kind])}
            base |= {"source": where, "is_verified": False}
            if like != name:
                base |= {"name": name, "names": ()}
        rows[name] = _row(kind, table, base, place)
    return tuple(rows.values())


def _row(kind: str, columns: Mapping[str, object], base: dict[str, Any], where: str) -> Any:
    """One row: `columns` as they are written over the fields of `base`."""
    cls = ROW_TYPES[kind]
    hints = _hints(kind)
    fields_of = {_column(name): name for name in hints}
    refuse_unknown(columns, fields_of, where)
    values = {name: value for name, value in base.items() if name in hints}
    for column, value in columns.items():
        name = fields_of[column]
        values[name] = _value(hints[name], name, column, value, where)
    missing = [column for column, name in fields_of.items() if name not in values]
    if missing:
        raise ConfigError(
            where,
            found=f"no {', '.join(missing)}",
            wanted="every column of a new row, or `like` with the id of a similar one",
        )
    return cls(**values)


@cache
def _hints(kind: str) -> dict[str, Any]:
    return get_type_hints(ROW_TYPES[kind])


def _column(name: str) -> str:
    """The column of a field: `memory_bytes` is stated in `memory_mib`."""
    for suffix, (of_field, _) in sorted(_UNITS.items(), key=lambda one: -len(one[1][0])):
        if name.endswith(of_field):
            return name.removesuffix(of_field) + suffix
    return name


def _value(hint: Any, name: str, column: str, value: object, where: str) -> Any:
    """A column's value as its field has it; text comes from a CSV file, or is a TOML string."""
    options = get_args(hint)
    if hint is bool:
        known = {"yes": True, "no": False, True: True, False: False}
        if isinstance(value, str | bool) and value in known:
            return known[value]
        raise ConfigError(f"{where}: {column}", found=repr(value), wanted="true or false")
    if hint == tuple[str, ...]:
        listed = value.split(";") if isinstance(value, str) else value
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return tuple(one.lower() for one in listed)
        raise ConfigError(f"{where}: {column}", found=repr(value), wanted="a list of names")
    if hint is str or (options and isinstance(options[0], str)):
        if not isinstance(value, str) or (options and value not in options):
            wanted = f"one of {', '.join(options)}" if options else "text"
            raise ConfigError(f"{where}: {column}", found=repr(value), wanted=wanted)
        return value
    if value == "" and type(None) in options:
        return None
    factor = next((unit[1] for suffix, unit in _UNITS.items() if column.endswith(suffix)), 1)
    is_whole = hint is int or int in options
    return _number(value, factor, is_whole, name in _MAY_BE_ZERO, f"{where}: {column}")


def _number(value: object, factor: float, is_whole: bool, may_be_zero: bool, where: str) -> float:
    wanted = f"a {'whole ' * is_whole}number" + (", 0 or more" if may_be_zero else " above 0")
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except ValueError:
        number = -1.0
    if not isfinite(number) or number < 0 or (number == 0 and not may_be_zero):
        raise ConfigError(where, found=repr(value), wanted=wanted)
    if not is_whole:
        return number * factor
    if number != int(number):
        raise ConfigError(where, found=repr(value), wanted=wanted)
    return int(number) * int(factor)


def refuse_unknown(found: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Raises: ConfigError for the first key that is not `known`, with the nearest that is."""
    for key in found:
        if key not in known:
            near = get_close_matches(key, list(known), 1, 0.5)
            nearest = f" (nearest: {near[0]})" if near else ""
            raise ConfigError(f"{where}: {key}", wanted=f"one of {', '.join(known)}{nearest}")
