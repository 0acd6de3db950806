"""Models that are known by name: DeepSeek's releases of this architecture, the models distilled
from R1, and DeepSeek-Coder-33B.

`tables/models.json` has the keys of each config.json that decide sizes and routing; `like` takes
another's keys first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

from fathom.errors import ConfigError
from fathom.spec.families import Model, parameters, parse_model


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model and what is published of it.

    `main_parameters` are those that make the next token; `mtp_parameters` those of the MTP layers,
    without their copies of embedding and head. `published` is the figure as its makers give it, at
    `source`, read on `date`; empty for a checkpoint on disk.
    """

    name: str
    aliases: tuple[str, ...]
    spec: Model
    main_parameters: int
    mtp_parameters: int
    published: str = ""
    source: str = ""
    date: str = ""

    @property
    def native_format(self) -> str:
        """Format of the matrices as they are stored."""
        return self.spec.weight_format.name


def find_model(name: str) -> KnownModel:
    """The known model of a name: its id on the hub, or a short one such as `R1`, in any case.

    Raises: ConfigError with the nearest names.
    """
    tables, asked = _tables(), name.strip().lower().removeprefix("deepseek-ai/")
    for entry in tables["models"]:
        if asked in _spellings(entry):
            break
    else:
        keys = {key: entry["name"] for entry in tables["models"] for key in _spellings(entry)}
        near = [keys[key] for key in get_close_matches(asked, keys, 5, 0.5)]
        raise ConfigError(
            "model",
            found=f"{name[:80]!r}, which is neither known nor a directory",
            wanted=f"one of {', '.join(dict.fromkeys(near or keys.values()))}"
            + (" (the nearest)" if near else ""),
            fix="a name of a known model, or a directory with its config.json",
        )
    return KnownModel(
        name=entry["name"],
        aliases=tuple(entry["aliases"]),
        spec=parse_model(_config(tables["configs"], entry["config"])),
        main_parameters=entry["main_parameters"],
        mtp_parameters=entry["mtp_parameters"],
        published=entry["published"],
        source=entry["source"],
        date=entry["date"],
    )


def known_names() -> tuple[str, ...]:
    """The full names of all known models."""
    return tuple(entry["name"] for entry in _tables()["models"])


def count_parameters(spec: Model) -> tuple[int, int]:
    """Parameters without MTP layers, and of those without copies, from the parameter table."""
    main = mtp = 0
    for row in parameters(spec):
        if row.layer is None or row.layer < spec.num_layers:
            main += row.num_elements
        elif row.copy_of is None:
            mtp += row.num_elements
    return main, mtp


def _spellings(entry: Mapping[str, Any]) -> tuple[str, ...]:
    short = entry["name"].removeprefix("deepseek-ai/")
    return tuple(one.lower() for one in (short, *entry["aliases"]))


def _config(configs: Mapping[str, Any], name: str) -> dict[str, object]:
    config = dict(configs[name])
    like = config.pop("like", None)
    return {**_config(configs, like), **config} if like else config


@cache
def _tables() -> dict[str, Any]:
    file = resources.files("fathom.spec").joinpath("tables", "models.json")
    tables: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return tables
