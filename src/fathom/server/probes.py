"""What probes and scrapers ask: alive, ready, version, metrics; and DeepSeek's clients, their
balance, though nobody has an account here. None of it adds load."""

from __future__ import annotations

from typing import Any

from msgspec import json

from fathom import __version__
from fathom.errors import UnavailableError
from fathom.server.envelope import error_headers
from fathom.server.exchange import JSON_HEADER, Exchange
from fathom.server.metrics import CONTENT_TYPE
from fathom.server.state import ServerState


async def livez(state: ServerState, exchange: Exchange) -> None:
    """200 while the process runs: a restart would not help a server that loads."""
    await exchange.give({"status": "alive"})


async def readyz(state: ServerState, exchange: Exchange) -> None:
    """200 when a request would be answered; else 503 with the phase and what is being done."""
    phase = state.phase
    if phase == "ready":
        await exchange.give({"status": "ready"})
        return
    told: dict[str, Any] = {"status": "not ready", "phase": phase}
    if state.engine is not None:
        told["progress"] = {
            "phase": state.engine.progress.phase,
            "detail": state.engine.progress.detail,
        }
        if phase == "dead" and state.engine.failure is not None:
            told["error"] = str(state.engine.failure)
    headers = [JSON_HEADER, *error_headers(UnavailableError("not ready"))]
    await exchange.respond(503, json.encode(told), headers)


async def version(state: ServerState, exchange: Exchange) -> None:
    """The version of fathom."""
    await exchange.give({"version": __version__})


async def user_balance(state: ServerState, exchange: Exchange) -> None:
    """Whether requests are answered, and no balances: an invented sum would be believed."""
    told = {"is_available": state.phase == "ready", "balance_infos": []}
    await exchange.give(told)


async def metrics(state: ServerState, exchange: Exchange) -> None:
    """Prometheus' text format."""
    engine = state.engine
    plan = None
    if engine is not None and engine.phase in ("ready", "draining"):
        plan = engine.plan
    stats = engine.stats if engine is not None else None
    body = state.observer.metrics.render(stats, plan)
    await exchange.respond(200, body, [(b"content-type", CONTENT_TYPE)])
