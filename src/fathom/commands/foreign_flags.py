"""The flags of vLLM and SGLang that fathom knows and what it says to each, as `text/foreign.toml`
has them; and the values that take more than a row to translate."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any, Literal

from fathom.commands.foreign import Foreign
from fathom.errors import ConfigError


@cache
def foreign_flags(command: Literal["serve", "bench_serve", "bench_offline"]) -> tuple[Foreign, ...]:
    """Those that mean something to a command; benchmarks share some."""
    file = resources.files("fathom.commands").joinpath("text", "foreign.toml")
    tables: dict[str, list[dict[str, Any]]] = tomllib.loads(file.read_text(encoding="utf-8"))
    shared = [] if command == "serve" else tables["bench"]
    return tuple(map(_foreign, [*shared, *tables[command]]))


def _foreign(row: dict[str, Any]) -> Foreign:
    harmless, into = tuple(row.get("harmless", ())), row.get("into")
    names = tuple(row["names"].split())
    return Foreign(**{**row, "names": names, "harmless": harmless, "into": into and _into(into)})


def _into(told: str | list[str]) -> Callable[[str], list[str]]:
    """From a value to fathom's own flags."""
    if isinstance(told, str):
        return _FUNCTIONS[told]
    return lambda value: [one.replace("{}", value) for one in told]


def _speculative_config(value: str) -> list[str]:
    """vLLM's JSON. Raises: ConfigError for anything but the model's own MTP layer."""
    try:
        config = json.loads(value)
    except ValueError:
        config = None
    flag = "--speculative-config"
    if not isinstance(config, dict):
        raise ConfigError(flag, found=value[:80], wanted="a JSON object")
    method = config.pop("method", "mtp")
    count = config.pop("num_speculative_tokens", 1)
    if method not in ("mtp", "deepseek_mtp") or config or not isinstance(count, int):
        raise ConfigError(
            f"{flag} cannot be honoured",
            found=value[:80],
            wanted='{"method": "mtp", "num_speculative_tokens": N}',
            fix="--num-speculative-tokens N",
        )
    return ["--num-speculative-tokens", str(count)]


def _draft_method(value: str) -> list[str]:
    """One draft, unless another flag says how many. Raises: ConfigError for other methods."""
    if value.lower() not in ("nextn", "eagle", "mtp", "deepseek_mtp"):
        raise ConfigError(
            "the method of drafting cannot be honoured",
            found=value,
            wanted="NEXTN, EAGLE or mtp, which are the model's own MTP layer",
            fix="--num-speculative-tokens N",
        )
    return ["--num-speculative-tokens", "1"]


def _chunk_size(value: str) -> list[str]:
    if value == "-1":
        raise ConfigError(
            "--chunked-prefill-size -1 cannot be honoured",
            found="it turns chunked prefill off",
            wanted="a count of tokens: long prompts always run in chunks",
            fix="--max-num-batched-tokens N, with N over the longest prompt",
        )
    return ["--max-num-batched-tokens", value]


_FUNCTIONS = {
    "speculative_config": _speculative_config,
    "draft_method": _draft_method,
    "chunk_size": _chunk_size,
}
