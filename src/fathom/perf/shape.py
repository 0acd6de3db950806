"""The shape of a step: all that its time depends on, counted over the whole deployment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from fathom.spec.work import causal_pairs


@dataclass(frozen=True, slots=True)
class StepShape:
    """One step of a deployment, whatever the ranks that share it.

    `num_tokens`: positions computed; `kv_tokens`: latents read, the sum over its sequences of the
    context at the step's end; `query_key_pairs`: the sum over positions of the keys that each sees;
    `num_sampled`: rows of logits. `decode_sequences` of the `num_sequences` continue an answer (one
    position each, and its drafts); the others compute a prompt, and the `prefill_` counts are their
    part of the totals.
    """

    num_tokens: int
    num_sequences: int
    decode_sequences: int
    kv_tokens: int
    query_key_pairs: int
    num_sampled: int
    prefill_tokens: int = 0
    prefill_kv_tokens: int = 0
    prefill_pairs: int = 0


class StepTime(Protocol):
    """What the simulator and the planner ask of a cost model."""

    def device_s(self, shape: StepShape) -> float:
        """Seconds that the devices take for a step."""
        ...

    def host_s(self, shape: StepShape) -> float:
        """Seconds that the host takes to plan, submit and answer a step."""
        ...


def decode_shape(num_sequences: int, kv_tokens: int, *, num_drafts: int = 0) -> StepShape:
    """A step in which each of `num_sequences` continues; their contexts sum to `kv_tokens`."""
    positions = num_sequences * (1 + num_drafts)
    # The last position sees all of its context, each one before it a key less.
    pairs = kv_tokens * (1 + num_drafts) - num_sequences * num_drafts * (num_drafts + 1) // 2
    return StepShape(positions, num_sequences, num_sequences, kv_tokens, pairs, positions)


def prefill_shape(chunks: Iterable[tuple[int, int]], *, num_sampled: int = 0) -> StepShape:
    """A step that computes pieces of prompts: positions, and the context at the step's end, of each
    sequence."""
    tokens = sequences = kv = pairs = 0
    for count, context in chunks:
        sequences += 1
        tokens += count
        kv += context
        pairs += causal_pairs(count, context)
    return StepShape(tokens, sequences, 0, kv, pairs, num_sampled, tokens, kv, pairs)


def joined(one: StepShape, other: StepShape) -> StepShape:
    """The step that does what both do, of different sequences."""
    return StepShape(
        one.num_tokens + other.num_tokens,
        one.num_sequences + other.num_sequences,
        one.decode_sequences + other.decode_sequences,
        one.kv_tokens + other.kv_tokens,
        one.query_key_pairs + other.query_key_pairs,
        one.num_sampled + other.num_sampled,
        one.prefill_tokens + other.prefill_tokens,
        one.prefill_kv_tokens + other.prefill_kv_tokens,
        one.prefill_pairs + other.prefill_pairs,
    )
