"""GET /api/tags and /api/ps, POST /api/show: the one model, under each of its names."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from msgspec import json

from fathom.server.exchange import Exchange
from fathom.server.job import Ask, tell
from fathom.server.ollama.schema import ShowRequest
from fathom.server.ollama.wire import served_name
from fathom.server.state import ServedModel, ServerState
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.model import ModelSpec
from fathom.spec.plan import DeploymentPlan, RemotePlan
from fathom.text.prompt import can_infill

_NEVER = "9999-12-31T00:00:00Z"  # what is served stays loaded


async def tags(state: ServerState, exchange: Exchange) -> None:
    """Every served name."""
    _, model = state.require()
    await exchange.give({"models": _cards(model)})


async def running(state: ServerState, exchange: Exchange) -> None:
    """The same, with how much context there is: what is served is loaded, and stays so."""
    _, model = state.require()
    more = {"context_length": model.plan.max_model_len, "expires_at": _NEVER}
    await exchange.give({"models": [{**c, **more} for c in _cards(model)]})


async def show(state: ServerState, exchange: Exchange) -> None:
    """What is known of a model."""
    await tell(state, exchange, _show)


def _show(ask: Ask) -> dict[str, Any]:
    model = ask.model
    served_name(model, ask.read(ShowRequest, "show").model)
    defaults = model.defaults
    can = {
        "completion": True,
        "insert": can_infill(model.tokenizer),
        "tools": model.template.tool_format is not None,
        "thinking": model.template.reasons != "never",
    }
    return {
        "modified_at": _time(model),
        "template": model.template.name,
        "parameters": f"temperature {defaults.temperature:g}\ntop_p {defaults.top_p:g}",
        "details": _details(model),
        "model_info": _info(model.plan),
        "capabilities": [name for name, is_there in can.items() if is_there],
    }


def _info(plan: DeploymentPlan | RemotePlan) -> dict[str, Any]:
    if isinstance(plan, RemotePlan):
        return {"general.architecture": "unknown", "unknown.context_length": plan.max_model_len}
    spec, family = plan.model, _family(plan.model)
    return {
        "general.architecture": family,
        "general.parameter_count": _num_parameters(spec),
        f"{family}.context_length": plan.max_model_len,
        f"{family}.embedding_length": spec.hidden_size,
        f"{family}.block_count": spec.num_layers,
        f"{family}.vocab_size": spec.vocab_size,
    }


def _cards(model: ServedModel) -> list[dict[str, Any]]:
    ledger = model.plan.ledger if isinstance(model.plan, DeploymentPlan) else ()
    size = sum(line.num_bytes for line in ledger if line.part.startswith("weights"))
    told = {"size": size, "details": _details(model)}
    # Of what is told here, not of files: Ollama's own program shows the first letters of one, and
    # fails where there is none.
    told["digest"] = hashlib.sha256(json.encode([model.name, told])).hexdigest()
    return [
        {"name": name, "model": name, "modified_at": _time(model), **told}
        for name in model.plan.served_names
    ]


def _details(model: ServedModel) -> dict[str, Any]:
    plan = model.plan
    if isinstance(plan, RemotePlan):  # an upstream's own business
        names = ("parent_model", "format", "family", "parameter_size", "quantization_level")
        return {**dict.fromkeys(names, ""), "families": []}
    spec = plan.model
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": _family(spec),
        "families": [_family(spec)],
        "parameter_size": _in_words(_num_parameters(spec)),
        "quantization_level": plan.quantization or spec.weight_format.name,
    }


def _family(spec: ModelSpec) -> str:
    return spec.architecture.removesuffix("ForCausalLM").lower()


@lru_cache(1)
def _num_parameters(spec: ModelSpec) -> int:
    return sum(row.num_elements for row in parameter_table(spec) if row.copy_of is None)


def _in_words(count: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def _time(model: ServedModel) -> str:
    return datetime.fromtimestamp(model.created_s, UTC).isoformat()
