"""What parts of a model move and compute at least, as pure counts of shapes and formats.

Two operations for a multiply-add of a product of matrices, none for anything else. They know no
machine. `ops/costs.py` adds the calls of ops to them, `perf/cost.py` layouts and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fathom.spec.formats import Format
from fathom.spec.model import Mla


def gated_bytes(form: Format, hidden: int, inner: int) -> int:
    """Bytes of one gated MLP's weights: gate and up together, and down."""
    return form.num_bytes((2 * inner, hidden)) + form.num_bytes((hidden, inner))


def gated_operations(hidden: int, inner: float) -> float:
    """Operations of a gated MLP for one token."""
    return 6 * hidden * inner


def expanded_operations(mla: Mla, heads: float, pairs: float) -> float:
    """Of attention over keys and values that were multiplied out of the latents; that product is a
    linear op of its own."""
    return 2 * heads * pairs * (mla.qk_dim + mla.v_dim)


def causal_pairs(queries: int, context: int) -> int:
    """Pairs of a query and a key that it sees: a query at position p sees p + 1, and the last of
    `queries` sees the whole `context`."""
    return queries * (2 * context - queries + 1) // 2


@lru_cache(maxsize=64)
def expert_chances(num_experts: int, per_token: int, skew: float) -> tuple[float, ...]:
    """How likely one token chooses each expert, the most popular first: in proportion to
    rank^-`skew` (0: all alike), never above 1, `per_token` in all."""
    weights = [(1 + rank) ** -skew for rank in range(num_experts)]
    sure = 0
    while True:
        # Experts that every token would choose leave the others what remains.
        scale = (per_token - sure) / sum(weights[sure:])
        if sure == num_experts or scale * weights[sure] <= 1:
            break
        sure += 1
    return (1.0,) * sure + tuple(scale * weight for weight in weights[sure:])


def distinct_experts(chances: Sequence[float], tokens: float) -> float:
    """Expected distinct experts that `tokens` tokens choose, each independently of the others."""
    return sum(1.0 - float((1.0 - chance) ** tokens) for chance in chances)
