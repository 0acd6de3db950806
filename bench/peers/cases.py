"""What is measured, as plain data that every driver understands. Imports nothing but Python's own.

Prompts are random token ids, a function of their seed alone: fresh ones for every sample, so that
no prefix cache helps where it should not.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

# Ids below belong to special tokens and bytes; as many are left out at the other end.
_MARGIN = 300


@dataclass(frozen=True, slots=True)
class Case:
    """An offline measurement, in tokens a second: of prompts (`prefill`, one new token) or of new
    tokens (`decode`, the steps after the first)."""

    name: str
    kind: Literal["prefill", "decode"]
    batch: int
    context: int
    new_tokens: int


OFFLINE = (
    Case("prefill 512", "prefill", 1, 512, 1),
    Case("prefill 2048", "prefill", 1, 2048, 1),
    Case("decode batch 1", "decode", 1, 128, 64),
    Case("decode batch 8", "decode", 8, 128, 64),
    Case("decode batch 32", "decode", 32, 128, 64),
)

# HTTP measurements: what they give, in the table's order. Units: tokens/s, then seconds, bytes.
MIXED, PREFIX, START, MEMORY = "mixed", "shared prefix", "start to first token", "peak memory"
SMALLER_IS_BETTER = frozenset((PREFIX, START, MEMORY))

# One request: its prompt's ids and the number of new tokens.
HttpRequest = tuple[list[int], int]


def case_to_wire(case: Case, seed: int, vocab_size: int) -> dict[str, Any]:
    """A case for a driver: its sizes, what to draw prompts from."""
    return {**asdict(case), "seed": seed, "vocab_size": vocab_size}


def token_ids(source: random.Random, count: int, vocab_size: int) -> list[int]:
    """`count` ordinary tokens, uniformly."""
    margin = min(_MARGIN, vocab_size // 4)
    return [source.randrange(margin, vocab_size - margin) for _ in range(count)]


def prompts(wire: dict[str, Any], purpose: str) -> list[list[int]]:
    """The prompts of one go at a case; another `purpose`, other prompts."""
    source = random.Random(f"{wire['seed']}:{wire['name']}:{purpose}")
    return [token_ids(source, wire["context"], wire["vocab_size"]) for _ in range(wire["batch"])]


def decode_rate(wire: dict[str, Any], whole_s: float, first_s: float) -> float:
    """New tokens a second after the first, from the time of all and the time of one."""
    return float(wire["batch"] * (wire["new_tokens"] - 1) / (whole_s - first_s))


def mixed_requests(seed: int, vocab_size: int, count: int = 64) -> list[HttpRequest]:
    """Inputs of 64 to 512 tokens, outputs of 16 to 128; the lengths are the same for all seeds."""
    lengths, source = random.Random(0), random.Random(f"mixed:{seed}")
    sizes = [(lengths.randint(64, 512), lengths.randint(16, 128)) for _ in range(count)]
    return [(token_ids(source, inputs, vocab_size), outputs) for inputs, outputs in sizes]


def prefix_requests(seed: int, vocab_size: int, count: int = 16) -> list[HttpRequest]:
    """Requests of 1,024 tokens in common and 32 of their own, with 32 new tokens each."""
    source = random.Random(f"prefix:{seed}")
    shared = token_ids(source, 1024, vocab_size)
    return [(shared + token_ids(source, 32, vocab_size), 32) for _ in range(count)]


def check_prompts(vocab_size: int) -> list[list[int]]:
    """Prompts on which the engines' log-probabilities are compared."""
    source = random.Random("log-probabilities")
    return [token_ids(source, length, vocab_size) for length in (9, 33, 64, 130)]
