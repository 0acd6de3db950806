"""What drafts did for a run, from the server's own counters before and after it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fathom.commands.client import Client
from fathom.errors import FathomError

_NAMES = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
_SAMPLE = re.compile(
    r"^vllm:spec_decode_(num_drafts|num_draft_tokens|num_accepted_tokens)(?:_total)?"
    r"(?:\{[^}]*\})?\s+(\S+)",
    re.MULTILINE,
)


def draft_counters(client: Client) -> dict[str, float]:
    """The counters of drafts at /metrics, summed over labels; nothing where there are none."""
    try:
        return read_counters(client.get_text("/metrics"))
    except (FathomError, UnicodeDecodeError):
        return {}  # other servers have no metrics, or need another key for them


def read_counters(text: str) -> dict[str, float]:
    """The counters in an exposition of Prometheus, by the names that vLLM gave them."""
    found: dict[str, float] = {}
    for match in _SAMPLE.finditer(text):
        found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def draft_results(
    before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, float | int]:
    """vLLM's fields: the share of drafted tokens that was accepted, in percent, and the tokens that
    a step with a draft gave, its own included. Nothing where nothing was drafted.

    Everything that the server did meanwhile is in it.
    """
    drafts, drafted, accepted = (after.get(one, 0.0) - before.get(one, 0.0) for one in _NAMES)
    if drafts <= 0 or drafted <= 0:
        return {}
    return {
        "spec_decode_acceptance_rate": accepted / drafted * 100.0,
        "spec_decode_acceptance_length": 1.0 + accepted / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(drafted),
        "spec_decode_accepted_tokens": int(accepted),
    }
