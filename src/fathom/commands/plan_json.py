"""A plan for programs: JSON of a schema with a version. Sizes in bytes, times in seconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fathom.commands.messages import read_words
from fathom.commands.plan import Answer, Machines
from fathom.commands.plan_text import say
from fathom.perf.advise import name_of
from fathom.perf.candidate import Candidate, Reason
from fathom.perf.held_weights import stored_bytes
from fathom.perf.memory import kv_bytes_per_token
from fathom.perf.search import why_lost
from fathom.spec.formats import BFLOAT16
from fathom.spec.known import KnownModel
from fathom.spec.parallel import Layout

# Raised where a field changes its meaning or goes; fields may be added.
SCHEMA = "fathom-plan/1"


def to_json(answer: Answer | Machines) -> str:
    """The document."""
    shown: dict[str, Any] = {"schema": SCHEMA, "model": _model(answer.model)}
    shown["demand"] = asdict(answer.asked.demand)
    if isinstance(answer, Machines):
        shown["machines"] = [
            {
                "gpu": one.cluster.gpu.id,
                "num_gpus": one.cluster.num_gpus,
                "nodes": one.cluster.nodes,
                "hour": one.hour,
                "currency": answer.currency,
                "price_source": one.price and one.price.source,
                **_candidate(one.best),
            }
            for one in answer.options
        ]
    else:
        shown |= _answer(answer)
    return json.dumps(shown, ensure_ascii=False, indent=1) + "\n"


def _answer(answer: Answer) -> dict[str, Any]:
    cluster, best = answer.cluster, answer.best
    rows = [
        {**_candidate(one), "lost": None if one is best else _reason(why_lost(one, best))}
        for one in answer.candidates
    ]
    shown: dict[str, Any] = {
        "verdict": answer.verdict,
        "cluster": {**asdict(cluster), "name": name_of(cluster), "num_gpus": cluster.num_gpus},
        "memory": [asdict(line) for line in best.ledger],
        "limit_bytes": best.limit_bytes,
        "candidates": rows,
        "changes": [_reason(one) for one in answer.changes],
        "costs": answer.costs and asdict(answer.costs),
        "most_users": answer.most_users,
        "busiest": answer.busiest
        and {**_candidate(answer.busiest[0]), "costs": asdict(answer.busiest[1])},
    }
    if answer.against is not None:
        shown["against"] = [_reason(one) for one in answer.against]
    if best.model is not None and best.steady is not None:
        shown["confidence"] = best.model.confidence
        shown["intervals"] = {
            "ttft": best.model.interval("ttft"),
            "tpot": best.model.interval("tpot"),
            "throughput": best.model.interval("throughput"),
        }
        if answer.asked.explain:
            step = best.model.explain(best.decode_step(answer.asked.demand))
            shown["step"] = [asdict(one) for one in step]
    return shown


def _model(model: KnownModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "main_parameters": model.main_parameters,
        "mtp_parameters": model.mtp_parameters,
        "stored_format": model.native_format,
        "stored_bytes": stored_bytes(model.spec),
        "kv_bytes_per_token": kv_bytes_per_token(model.spec, BFLOAT16, Layout()),
        "max_position": model.spec.max_position,
        "source": model.source,
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {
        "layout": asdict(one.layout),
        "weights": one.precision.name,
        "is_exact": one.precision.is_exact,
        "kv": one.kv.name,
        "batch_tokens": one.working.max_batch_tokens,
        "fits": one.fits,
        "over_bytes": one.over_bytes,
        "needed_bytes": one.needed_bytes,
        "needed_kv_bytes": one.needed_kv_bytes,
        "kv_tokens": one.kv_tokens,
        "context": one.context,
        "users": one.users,
        "shortfalls": [_reason(missed) for missed in one.shortfalls],
        "steady": one.steady and asdict(one.steady),
    }


def _reason(one: Reason) -> dict[str, Any]:
    """By its key, and in English."""
    return {"key": one.key, **dict(one.values), "text": say(read_words("plan", "en"), one)}
