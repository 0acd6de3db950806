"""Flags of vLLM and SGLang that are no flags of fathom: accepted with a note, or explained.

`fathom.commands.foreign_flags` has the tables; this module applies one to a command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.errors import ConfigError

Verdict = Literal["accepted", "dropped", "other", "missing", "translated"]
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """One foreign flag.

    `verdict`: accepted (it asks for what happens anyway), dropped (a name that its own project
    gave up, or never had), other (fathom's flag for it means something else), missing (a feature
    that fathom has not), translated (`into` gives fathom's own flags). `num_values` follow it.
    `harmless` are values with which any flag is accepted; an accepted flag that has them is
    accepted with these only. `gives_way`: what it is translated into yields to flags that say
    more, wherever they stand.
    """

    names: tuple[str, ...]
    verdict: Verdict
    why: str = ""
    fix: str = ""
    num_values: int = 1
    harmless: tuple[str, ...] = ()
    into: Callable[[str], list[str]] | None = None
    gives_way: bool = False


def translate(arguments: Sequence[str], table: Sequence[Foreign]) -> tuple[list[str], list[str]]:
    """The command line with foreign flags taken out or translated, and a note for each of them.

    Raises: ConfigError for one that cannot be honoured; it says why, and what to do instead.
    """
    by_name = {name: entry for entry in table for name in entry.names}
    kept: list[str] = []
    notes: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        entry = by_name.get(name.replace("_", "-")) if name.startswith("-") else None
        if entry is None:
            kept.append(argument)
            continue
        if not equals:
            value = _take(entry, rest)
        own, note = _apply(entry, name, value)
        kept = [*own, *kept] if entry.gives_way else [*kept, *own]
        if note:
            notes.append(note)
    return kept, notes


def _take(entry: Foreign, rest: list[str]) -> str:
    """The flag's values, or the true or false that people put after a switch."""
    if entry.num_values == 0:
        return rest.pop(0) if rest and rest[0].lower() in ("true", "false") else ""
    taken: list[str] = []
    while rest and len(taken) < entry.num_values and not _is_flag(rest[0]):
        taken.append(rest.pop(0))
    return " ".join(taken)


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not argument[1:2].isdigit()


def _apply(entry: Foreign, name: str, value: str) -> tuple[list[str], str]:
    """Own flags instead, and a note. Raises: ConfigError."""
    is_negated = entry.num_values == 0 and _TRUTH.get(value.lower()) is False
    if is_negated:
        raise ConfigError(
            f"{name} is a switch and takes no value",
            found=value,
            wanted=f"{name} alone, or nothing",
            fix=f"leave it out: {entry.why}",
        )
    is_harmless = value.lower() in entry.harmless
    if entry.verdict == "translated" and entry.into is not None:
        own = entry.into(value)
        return own, f"{name}: read as {' '.join(own) or 'nothing'}"
    if is_harmless or (entry.verdict == "accepted" and not entry.harmless):
        return [], f"{name}: {entry.why}"
    raise ConfigError(
        f"{name} {_WORDS[entry.verdict]}: {entry.why}",
        found=value,
        wanted=" or ".join(entry.harmless),
        fix=entry.fix,
    )


_WORDS = {
    "dropped": "is no flag any more",
    "other": "is not fathom's",
    "missing": "is not implemented yet",
    "accepted": "cannot be honoured with this value",
}
