"""A row of the route table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

from msgspec import Struct

from fathom.server.envelope import OPENAI, Form
from fathom.server.exchange import Exchange
from fathom.server.state import ServerState

Handler = Callable[[ServerState, Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One row. `form`: how its dialect writes errors and streams. `body`, `query`: what is read.

    `gives`: the media type of a whole answer. `is_open`: needs no key.
    """

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    form: Form = OPENAI
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    gives: str = "application/json"

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters in `path`, None where it is not this route's."""
        if "{" not in self.path:
            return {} if path == self.path else None
        found = _pattern(self.path).fullmatch(path)
        return None if found is None else found.groupdict()


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """`{name}` is a segment, `{name:path}` everything."""
    parts = {"": "[^/]+", ":path": ".*"}
    named = re.compile(r"\\{(\w+)((?::path)?)\\}")
    return re.compile(named.sub(lambda one: f"(?P<{one[1]}>{parts[one[2]]})", re.escape(path)))
