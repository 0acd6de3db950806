"""GET /v1/models and /v1/models/{model}, in OpenAI's form and in Anthropic's at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fathom.server.exchange import Exchange
from fathom.server.state import ServedModel, ServerState


async def list_models(state: ServerState, exchange: Exchange) -> None:
    """Every served name."""
    _, model = state.require()
    data = [_card(model, name) for name in model.plan.served_names]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
    await exchange.give({"object": "list", "data": data, "has_more": False, **ends})


async def show_model(state: ServerState, exchange: Exchange) -> None:
    """One served name."""
    _, model = state.require()
    name = str(exchange.scope["path_params"]["model"])
    model.check_name(name)
    await exchange.give(_card(model, name))


def _card(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "fathom",
        "root": model.name,
        "parent": None,
        "max_model_len": model.plan.max_model_len,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(model.created_s, UTC).isoformat(),
    }
