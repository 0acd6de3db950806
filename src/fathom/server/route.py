"""A row of the route table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
