"""Whether a peer computes the same model: its log-probabilities beside transformers' in float32.

Speed of another computation is no comparison. The reference scores the very tokens that the peer
chose, so that steps after the first are compared too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Protocol

# Mean distance, in nats, from which on the output counts as different: about three times what
# rounding to bfloat16 gives transformers itself.
DIFFERS_NATS = 0.75
NEW_TOKENS = 3

Top = Sequence[Sequence[float]]


class Reference(Protocol):
    """Gives the reference's top 20 before each token that follows a prompt."""

    def __call__(self, prompt: list[int], tokens: list[int]) -> list[Top]: ...


def position_distance(reference: Top, peer: Top) -> tuple[float, int, bool]:
    """Mean distance over the reference's tokens, how many of them the peer lists, whether the best
    is the same. A token that the peer does not list counts with the lowest value that it lists,
    which it cannot exceed: then the distance is a lower bound."""
    listed = {int(token): value for token, value in peer}
    lowest = min(listed.values())
    distances = [abs(value - listed.get(int(token), lowest)) for token, value in reference]
    shared = sum(int(token) in listed for token, _ in reference)
    return statistics.mean(distances), shared, int(reference[0][0]) == int(peer[0][0])


def compare(
    prompts: Sequence[list[int]], answers: Sequence[dict[str, Any]], reference: Reference
) -> dict[str, Any]:
    """The peer's mean distance and agreement over all prompts and positions, and each of them."""
    rows = [
        position_distance(expected, found)
        for prompt, answer in zip(prompts, answers, strict=True)
        for expected, found in zip(reference(prompt, answer["tokens"]), answer["top"], strict=True)
    ]
    distance = statistics.mean(row[0] for row in rows)
    return {
        "distance_nats": round(distance, 4),
        "shared_of_20": round(statistics.mean(row[1] for row in rows), 2),
        "top_1_agreement": round(statistics.mean(row[2] for row in rows), 3),
        "differs": distance > DIFFERS_NATS,
        "positions": [[round(row[0], 4), row[1], row[2]] for row in rows],
    }
