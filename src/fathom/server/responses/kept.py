"""GET and DELETE of answers that were kept, and of the items that they answered."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qsl

from msgspec import Struct

from fathom.errors import NotFoundError, RequestError
from fathom.server.decode import read
from fathom.server.exchange import Exchange
from fathom.server.responses.schema import ItemsQuery
from fathom.server.responses.store import Kept
from fathom.server.state import ServerState

QueryT = TypeVar("QueryT", bound=Struct)


class NoQuery(Struct, frozen=True):
    """Nothing is asked."""


async def retrieve(state: ServerState, exchange: Exchange) -> None:
    """An answer as it was."""
    _query(exchange, NoQuery)
    await exchange.give(_kept(state, exchange).response)


async def delete(state: ServerState, exchange: Exchange) -> None:
    """Forget an answer."""
    name = _name(exchange)
    if not state.responses.delete(exchange.tenant, name):
        raise _not_found(name)
    told = {"id": name, "object": "response", "deleted": True}
    await exchange.give(told)


async def input_items(state: ServerState, exchange: Exchange) -> None:
    """The items that an answer was for, the last one first."""
    query = _query(exchange, ItemsQuery)
    items = _kept(state, exchange).items[:: 1 if query.order == "asc" else -1]
    ids = [item["id"] for item in items]
    if query.after:
        if query.after not in ids:
            raise RequestError("there is no such item", param="after", found=query.after[:100])
        items = items[ids.index(query.after) + 1 :]
    page = items[: query.limit]
    told: dict[str, Any] = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    await exchange.give(told)


def _query(exchange: Exchange, kind: type[QueryT]) -> QueryT:
    """The query's fields. Raises: RequestError for one that is not known or not valid."""
    query = exchange.scope["query_string"].decode("latin-1")
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in kind.__struct_fields__:
            raise RequestError(
                f"{name[:100]} is not supported here",
                param=name[:100],
                code="unsupported_parameter",
                wanted=", ".join(kind.__struct_fields__) or "no query",
            )
    return read(given, kind, is_text=True)


def _kept(state: ServerState, exchange: Exchange) -> Kept:
    name = _name(exchange)
    kept = state.responses.get(exchange.tenant, name)
    if kept is None:
        raise _not_found(name)
    return kept


def _name(exchange: Exchange) -> str:
    return str(exchange.scope["path_params"]["response_id"])


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        "there is no such response, or no longer", param="response_id", found=name[:100]
    )
