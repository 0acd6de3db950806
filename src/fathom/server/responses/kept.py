"""GET and DELETE of answers that were kept, and of the items that they answered."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from msgspec import json

from fathom.errors import NotFoundError, RequestError
from fathom.server.exchange import Exchange
from fathom.server.responses.store import Kept
from fathom.server.state import ServerState

_MAX_LIMIT = 100


async def retrieve(state: ServerState, exchange: Exchange) -> None:
    """An answer as it was."""
    _query(exchange, {})
    await exchange.respond(200, json.encode(_kept(state, exchange).response))


async def delete(state: ServerState, exchange: Exchange) -> None:
    """Forget an answer."""
    name = _name(exchange)
    if not state.responses.delete(exchange.tenant, name):
        raise _not_found(name)
    told = {"id": name, "object": "response", "deleted": True}
    await exchange.respond(200, json.encode(told))


async def input_items(state: ServerState, exchange: Exchange) -> None:
    """The items that an answer was for, the last one first."""
    query = _query(exchange, {"limit": "20", "order": "desc", "after": ""})
    limit, order, after = query["limit"], query["order"], query["after"]
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MAX_LIMIT):
        raise RequestError("limit is not valid", param="limit", wanted=f"1 to {_MAX_LIMIT}")
    if order not in ("asc", "desc"):
        raise RequestError("order is not valid", param="order", wanted="asc or desc")
    items = _kept(state, exchange).items[:: 1 if order == "asc" else -1]
    ids = [item["id"] for item in items]
    if after:
        if after not in ids:
            raise RequestError("there is no such item", param="after", found=after[:100])
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    told: dict[str, Any] = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    await exchange.respond(200, json.encode(told))


def _query(exchange: Exchange, defaults: dict[str, str]) -> dict[str, str]:
    """The query's fields. Raises: RequestError for one that is not known."""
    given = dict(parse_qsl(exchange.scope["query_string"].decode("latin-1")))
    for name in given:
        if name not in defaults:
            raise RequestError(
                f"{name[:100]} is not supported here",
                param=name[:100],
                code="unsupported_parameter",
                wanted=", ".join(defaults) or "no query",
            )
    return {**defaults, **given}


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
