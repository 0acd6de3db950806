"""Requests of a recorded trace, from its text. A line that is wrong is named with its column.

    {"arrival": 1.5, "input": 700, "output": 5, "prefix_ids": [1, 2]}                  seconds
    {"timestamp": 1500, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}   Mooncake
    TIMESTAMP,ContextTokens,GeneratedTokens                                            Azure, CSV
    2023-11-16 18:15:46.6805900,4808,10

Equal prefix ids are equal blocks of tokens. Sources of the columns: the JSON lines of the Mooncake
traces, and Azure's public traces of LLM inference.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

from fathom.errors import ConfigError
from fathom.perf.datasets import AnyVocabulary, request
from fathom.perf.virtual import Runs
from fathom.perf.workload import LoadRequest

_MOST_TOKENS = 2**31 - 1
_MILLISECOND = 0.001
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# Names of arrival, prompt, answer and prefix ids, and seconds of one unit of the arrival.
_JSON_NAMES = (
    ("arrival", "input", "output", "prefix_ids", 1.0),
    ("timestamp", "input_length", "output_length", "hash_ids", _MILLISECOND),
)


@dataclass(frozen=True, slots=True)
class TraceShape:
    """Units of a trace: seconds of one step of Mooncake's timestamps (other traces have seconds,
    and are stretched by as much), and tokens that one prefix id stands for."""

    timestamp_s: float = _MILLISECOND
    block_len: int = 512


class _Row(NamedTuple):
    at_s: float
    input_len: int
    output_len: int
    blocks: tuple[int | str, ...] = ()


def trace_requests(
    text: str,
    shape: TraceShape,
    vocabulary: AnyVocabulary,
    seed: int,
    *,
    name: str = "--dataset-path",
    as_text: bool = False,
) -> list[LoadRequest]:
    """The requests of a trace in the order of arrival. Raises: ConfigError naming line and column
    of what is wrong in file `name`."""
    first = text.lstrip().partition("\n")[0]
    reader = _csv_rows if "{" not in first and "," in first else _json_rows
    made = []
    for number, row in reader(text, name):
        places: tuple[int, ...] | Runs = ()
        for block in row.blocks:
            if len(places) < row.input_len:
                places = places + vocabulary.draw(Random(f"{seed} {block}"), shape.block_len)
        rest_len = max(0, row.input_len - len(places))
        rest = vocabulary.draw(Random(f"{seed} row {number}"), rest_len)
        one = request(vocabulary, places[: row.input_len] + rest, row.output_len, as_text=as_text)
        made.append(replace(one, at_s=row.at_s * shape.timestamp_s / _MILLISECOND))
    if not made:
        raise ConfigError(name, found="no request", wanted="one a line")
    return sorted(made, key=lambda one: one.at_s)


class _Line(NamedTuple):
    """Where an error is."""

    name: str
    number: int
    text: str

    def wrong(self, start: int, found: object, wanted: str) -> ConfigError:
        """The error for what is `start` characters into the line."""
        where = f"{self.name}: line {self.number}, column {start + 1}"
        return ConfigError(where, found=str(found)[:120], wanted=wanted)


def _lines(text: str, name: str) -> Iterator[_Line]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _Line(name, number, line)


def _json_rows(text: str, name: str) -> Iterator[tuple[int, _Row]]:
    for line in _lines(text, name):
        try:
            row = json.loads(line.text)
        except json.JSONDecodeError as error:
            found = line.text[error.pos : error.pos + 40] or "the end of the line"
            raise line.wrong(error.pos, found, f"JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise line.wrong(0, line.text, "a JSON object")
        yield line.number, _json_row(line, row)


def _json_row(line: _Line, row: dict[str, Any]) -> _Row:
    for arrival, asked, answered, ids, unit_s in _JSON_NAMES:
        if arrival in row:
            blocks = _json_blocks(line, ids, row.get(ids))
            return _Row(
                _time_s(line, _start(line, arrival), row[arrival]) * unit_s,
                _tokens(line, _start(line, asked), row.get(asked), asked),
                _tokens(line, _start(line, answered), row.get(answered), answered),
                blocks,
            )
    known = " or ".join(", ".join(names[:3]) for names in _JSON_NAMES)
    raise line.wrong(0, f"keys {', '.join(row) or '(none)'}", known)


def _json_blocks(line: _Line, key: str, found: object) -> tuple[int | str, ...]:
    blocks = found if found is not None else []
    if not isinstance(blocks, list) or not all(isinstance(one, int | str) for one in blocks):
        raise line.wrong(_start(line, key), found, f"{key}: a list of numbers or names")
    return tuple(blocks)


def _start(line: _Line, key: str) -> int:
    """Where a key's value begins; where the line does if the key is not there."""
    found = re.search(f'"{key}"\\s*:\\s*', line.text)
    return found.end() if found else 0


def _time_s(line: _Line, start: int, found: object) -> float:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not 0 <= found < math.inf:  # type: ignore[operator]
        raise line.wrong(start, found, "an arrival of 0 or more")
    return float(found)  # type: ignore[arg-type]


def _tokens(line: _Line, start: int, found: object, name: str) -> int:
    is_whole = isinstance(found, int) and not isinstance(found, bool)
    if not is_whole or not 1 <= found <= _MOST_TOKENS:  # type: ignore[operator]
        shown = "nothing" if found is None else found
        raise line.wrong(start, shown, f"{name}: a whole number of tokens, 1 or more")
    assert isinstance(found, int)
    return found


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, _Row]]:
    """Azure's columns, wherever they stand; arrivals count from the earliest."""
    lines = _lines(text, name)
    header = next(lines)
    titles = [title.strip() for title in header.text.split(",")]
    for title in _AZURE:
        if title not in titles:
            raise header.wrong(0, header.text, f"the columns {', '.join(_AZURE)}")
    places = [titles.index(title) for title in _AZURE]
    rows: list[tuple[int, _Row]] = []
    for line in lines:
        cells = line.text.split(",")
        if len(cells) != len(titles):
            raise line.wrong(0, f"{len(cells)} fields", f"{len(titles)}, as in the header")
        asked, answered = (
            _csv_tokens(line, cells, place, title)
            for place, title in zip(places[1:], _AZURE[1:], strict=True)
        )
        rows.append((line.number, _Row(_csv_time_s(line, cells, places[0]), asked, answered)))
    first_s = min((row.at_s for _, row in rows), default=0.0)
    for number, row in rows:
        yield number, row._replace(at_s=row.at_s - first_s)


def _csv_time_s(line: _Line, cells: Sequence[str], place: int) -> float:
    try:
        when = datetime.fromisoformat(cells[place].strip())
    except ValueError:
        raise line.wrong(
            _cell(cells, place), cells[place], "a time such as 2023-11-16 18:15:46.68"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _csv_tokens(line: _Line, cells: Sequence[str], place: int, title: str) -> int:
    digits = cells[place].strip()
    is_short = digits.isdecimal() and len(digits) < 12
    found = int(digits) if is_short else cells[place]
    return _tokens(line, _cell(cells, place), found, title)


def _cell(cells: Sequence[str], place: int) -> int:
    """Where a cell begins in its line."""
    return sum(len(cell) + 1 for cell in cells[:place])
