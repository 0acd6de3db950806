"""GET /user/balance: there are no accounts here, so nobody runs out."""

from __future__ import annotations

from msgspec import json

from fathom.server.exchange import Exchange
from fathom.server.state import ServerState


async def user_balance(state: ServerState, exchange: Exchange) -> None:
    """Whether requests are answered, and no balances: an invented sum would be believed."""
    told = {"is_available": state.phase == "ready", "balance_infos": []}
    await exchange.respond(200, json.encode(told))
