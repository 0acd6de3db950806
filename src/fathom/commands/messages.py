"""What a command says, in English or Chinese: one table of messages for each language."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal
from unicodedata import east_asian_width

from fathom.errors import ConfigError

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Words:
    """The messages of a language."""

    table: dict[str, dict[str, str]]

    def __call__(self, message: str, /, **values: object) -> str:
        """The message of `section.name`, its gaps filled."""
        section, _, name = message.partition(".")
        return self.table[section][name].format(**values)

    def part(self, name: str) -> str:
        """A line of the memory ledger, as it is called in the language."""
        return self.table["part"].get(name, name)

    def error(
        self, name: str, /, *, found: str = "", wanted: str = "", **values: object
    ) -> ConfigError:
        """An error that says a message of the section `error`."""
        return ConfigError(self(f"error.{name}", **values), found=found, wanted=wanted)


def read_words(command: str, language: Language) -> Words:
    """The messages of a command."""
    file = resources.files("fathom.commands").joinpath("text", f"{command}.{language}.toml")
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    return Words(table)


def width(text: str) -> int:
    """Columns of a terminal that a text takes: two for each Chinese character."""
    return sum(2 if east_asian_width(one) in "WF" else 1 for one in text)


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """A text with spaces behind it, or before it, up to a width."""
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def table(rows: list[list[str]], indent: str = "  ", right: tuple[int, ...] = ()) -> list[str]:
    """Lines of columns as wide as their widest cell; `right`: columns with numbers."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return [
        indent
        + "  ".join(
            padded(cell, widths[at], right=at in right) for at, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
