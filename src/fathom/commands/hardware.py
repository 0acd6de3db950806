"""The hardware catalogue as the user has it: fathom's, with the changes of a file of their own."""

from __future__ import annotations

from pathlib import Path

from fathom.config import environment_hardware_file
from fathom.errors import ConfigError
from fathom.spec.catalogue import Catalogue, builtin_catalogue


def read_catalogue(flag: str | None = None) -> Catalogue:
    """The catalogue with the changes of the file that `--hardware` names, or FATHOM_HARDWARE where
    the flag is not given.

    Raises: ConfigError for a file that cannot be read, and for what is wrong in it.
    """
    path = flag or environment_hardware_file()
    if path is None:
        return builtin_catalogue()
    name = "--hardware" if flag else "FATHOM_HARDWARE"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} {path}", found=str(error), wanted="a TOML file") from error
    return builtin_catalogue().changed(text, path)
