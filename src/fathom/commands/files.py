"""Files that flags name: one that cannot be read or written is an error that says whose it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.errors import ConfigError


def read_text(flag: str, path: str | Path, wanted: str = "") -> str:
    """The text of a file. Raises: ConfigError; `wanted`: what the file should be."""
    with _named(flag, path, wanted):
        return Path(path).read_text(encoding="utf-8")


def write_file(
    flag: str, path: str | Path, pieces: Iterable[bytes], *, appends: bool = False
) -> None:
    """Write a file, or add to it. Raises: ConfigError."""
    with _named(flag, path), Path(path).open("ab" if appends else "wb") as file:
        file.writelines(pieces)


def check_writable(flag: str, path: str | Path) -> None:
    """Before a run that may be long. Raises: ConfigError where no file could be written."""
    place = Path(path)
    if place.is_dir() or not os.access(place if place.exists() else place.parent, os.W_OK):
        wanted = "a file in a directory that may be written to"
        raise ConfigError(f"{flag} {path}", found="not writable", wanted=wanted)


@contextmanager
def _named(flag: str, path: str | Path, wanted: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}", found=str(error), wanted=wanted) from error
