"""What a number format costs in quality: what is measured, its summary, and limits by format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class QualityLimit:
    """The most that a format may lose against float32 on the embedded model's held-out answers:
    the mean KL divergence in nats, and the share of positions whose likeliest token is the same."""

    max_mean_kl: float
    min_top1: float


# By format: "int4" and "int8" as `--quantization` loads them, "int4-G" checkpoints of `fathom
# quantize` in groups of G columns, "kv_fp8" bf16 with the cache in FP8. Tests and `fathom eval
# --check` hold formats to it. About twice what was measured (docs/quality.md): another order of
# sums and another share of the text pass, a wrong scale or a role in fewer bits does not.
QUALITY_LIMITS: Mapping[str, QualityLimit] = MappingProxyType(
    {
        "float32": QualityLimit(1e-9, 1.0),
        "bf16": QualityLimit(0.0005, 0.99),
        "stored": QualityLimit(0.0005, 0.99),
        "fp8": QualityLimit(0.0005, 0.99),
        "kv_fp8": QualityLimit(0.001, 0.99),
        "int8": QualityLimit(0.002, 0.99),
        "int4": QualityLimit(0.02, 0.975),
        "int4-128": QualityLimit(0.025, 0.975),
        "int4-64": QualityLimit(0.02, 0.975),
        "int4-32": QualityLimit(0.0125, 0.975),
    }
)


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens of a text, of which those from index `first_scored` on, at least 1, are predicted."""

    token_ids: tuple[int, ...]
    first_scored: int = 1

    @property
    def num_scored(self) -> int:
        """Positions that are compared."""
        return len(self.token_ids) - self.first_scored


@dataclass(frozen=True, slots=True)
class Positions:
    """Two models compared, one entry for each predicted token, over the whole vocabulary.

    `kl`: the divergence KL(reference || model) in nats. `agrees`: whether their likeliest tokens
    are the same. The losses are -log p of the token that follows in the text.
    """

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]
    reference_losses: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """`Positions`, summed up."""

    num_positions: int
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float
    reference_perplexity: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Shares of greedy answers that have the right form, and that are right."""

    task: str
    num_questions: int
    valid: float
    correct: float


@dataclass(frozen=True, slots=True)
class FormatQuality:
    """What one format gave. `weight_bytes` as the plan's ledger counts them."""

    format: str
    ops_backend: str
    kv_dtype: str
    weight_bytes: int
    divergence: Divergence
    tasks: tuple[TaskScore, ...] = ()


def summarize(positions: Positions) -> Divergence:
    """The summary of at least one position. `p99_kl` is the nearest rank's."""
    ordered, count = sorted(positions.kl), len(positions.kl)
    return Divergence(
        num_positions=count,
        mean_kl=sum(ordered) / count,
        p99_kl=ordered[(99 * count + 99) // 100 - 1],
        max_kl=ordered[-1],
        top1=sum(positions.agrees) / count,
        reference_perplexity=_perplexity(positions.reference_losses),
        perplexity=_perplexity(positions.losses),
    )


def excess(name: str, found: Divergence) -> str:
    """How `found` exceeds the limits of format `name`; empty where it does not or has none."""
    limit = QUALITY_LIMITS.get(name)
    wrong = []
    if limit is not None and found.mean_kl > limit.max_mean_kl:
        wrong.append(f"mean KL {found.mean_kl:.2g} over {limit.max_mean_kl:g}")
    if limit is not None and found.top1 < limit.min_top1:
        wrong.append(f"top-1 agreement {found.top1:.1%} under {limit.min_top1:.1%}")
    return ", ".join(wrong)


def _perplexity(losses: Sequence[float]) -> float:
    return exp(sum(losses) / len(losses))
