"""Which backend computes which op: decided once, when a model is built, with a reason for each.

Nothing falls back in silence: a backend that was asked for and cannot run is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from fathom.errors import ConfigError
from fathom.ops.api import Backend
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.cases import DtypeName, OpName, WeightName
from fathom.ops.reference import ReferenceBackend
from fathom.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Need:
    """One op as a model will call it. `weights` is the activations' format where it has none."""

    op: OpName
    device: str
    dtype: DtypeName
    weights: WeightName


@dataclass(frozen=True, slots=True)
class Support:
    """How well a backend meets a need: 0 not at all, else the higher the better; and why."""

    score: int
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that may be chosen: `supports` is asked before `make` is called."""

    name: str
    supports: Callable[[Need], Support]
    make: Callable[[], Backend]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for one need."""

    need: Need
    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The ops of one model, and the decisions behind them."""

    ops: Backend
    choices: tuple[Choice, ...]


def _reference_supports(need: Need) -> Support:
    return Support(1, f"plain torch runs everywhere, {need.device} too")


def _cpu_supports(need: Need) -> Support:
    if need.device != "cpu":
        return Support(0, f"its kernels run on CPUs, not on {need.device}")
    if need.dtype != "bfloat16":
        return Support(0, f"its activations are bfloat16, not {need.dtype}")
    try:
        isa = library.isa()
    except ConfigError as error:
        return Support(0, f"{error.what}: {error.found}")
    if not isa:
        return Support(0, "this processor has none of its instruction sets")
    return Support(10, f"kernels for {isa}")


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("cpu", _cpu_supports, CpuBackend),
    Candidate("reference", _reference_supports, ReferenceBackend),
)

# Ops that go to one backend together, since they share a layout of weights or of the cache, or hand
# each other a plan; and the further methods that belong to each group.
_TOGETHER: tuple[tuple[OpName, ...], ...] = (
    ("linear", "mlp", "experts"),
    ("mla_attend", "mla_write"),
)
_FURTHER: Mapping[OpName, tuple[str, ...]] = {
    "linear": ("hold", "hold_experts"),
    "mla_attend": ("mla_plan", "hold_kv_b"),
}
_WITH_WEIGHTS: tuple[OpName, ...] = ("linear", "mlp", "experts")
_PLAIN: tuple[OpName, ...] = (
    "embed",
    "rms_norm",
    "rope",
    "linear",
    "mlp",
    "quantize_rows",
    "silu_mul",
    "mla_attend",
    "mla_write",
    "route",
    "experts",
    "mask_logits",
    "largest",
    "sample",
    "token_logprobs",
    "verify",
)


def needs_of(
    spec: ModelSpec, *, device: str, dtype: DtypeName, is_quantized: bool
) -> tuple[Need, ...]:
    """What a model calls on `device` ("cpu" or "cuda"); `is_quantized` where blocked weights are
    kept as they are stored."""
    weights: WeightName = dtype
    if is_quantized and spec.weight_format.block is not None:
        weights = "fp8_block"
    return tuple(
        Need(op, device, dtype, weights if op in _WITH_WEIGHTS else dtype) for op in _PLAIN
    )


def select_backends(
    needs: Sequence[Need],
    *,
    forced: str | None = None,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> Selection:
    """The best backend for each need; `forced` names the only one allowed. Of equal scores the
    earlier candidate wins.

    Raises: ConfigError where `forced` is unknown or cannot meet a need, or nothing can.
    """
    if forced is not None:
        candidates = [_named(forced, candidates)]
    chosen = [
        (need, *_best(need, candidates, _group_of(need, needs), is_forced=forced is not None))
        for need in needs
    ]
    made = {candidate.name: candidate.make() for _, candidate, _ in chosen}
    backends = {need.op: made[candidate.name] for need, candidate, _ in chosen}
    choices = tuple(
        Choice(need, candidate.name, support.reason) for need, candidate, support in chosen
    )
    return Selection(_joined(backends, tuple(made)), choices)


def _named(name: str, candidates: Sequence[Candidate]) -> Candidate:
    for candidate in candidates:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in candidates)
    raise ConfigError("backend of the ops", found=name, wanted=f"one of {names}")


def _group_of(need: Need, needs: Sequence[Need]) -> Sequence[Need]:
    """The needs that go to one backend with `need`, itself among them."""
    for group in _TOGETHER:
        if need.op in group:
            return [one for one in needs if one.op in group]
    return [need]


def _supports_all(candidate: Candidate, needs: Sequence[Need]) -> Support:
    """How well a backend meets all of a group: as well as the one that it meets worst."""
    return min((candidate.supports(need) for need in needs), key=lambda support: support.score)


def _best(
    need: Need, candidates: Sequence[Candidate], group: Sequence[Need], *, is_forced: bool
) -> tuple[Candidate, Support]:
    answers = [(candidate, _supports_all(candidate, group)) for candidate in candidates]
    best, support = max(answers, key=lambda answer: answer[1].score)
    if support.score > 0:
        return best, support
    reasons = "; ".join(f"{candidate.name}: {answer.reason}" for candidate, answer in answers)
    raise ConfigError(
        f"op {need.op} in {need.dtype} with {need.weights} weights on {need.device}",
        found=reasons,
        wanted="a backend that supports it",
        fix="do not force the backend" if is_forced else "choose another dtype or device",
    )


class _Joined:
    """Ops of several backends under one name."""

    def __init__(self, name: str, backends: Mapping[OpName, Backend]) -> None:
        self.name = name
        for op, backend in backends.items():
            for method in (op, *_FURTHER.get(op, ())):
                setattr(self, method, getattr(backend, method))


def _joined(backends: Mapping[OpName, Backend], names: Sequence[str]) -> Backend:
    if len(names) == 1:
        return next(iter(backends.values()))
    return cast(Backend, _Joined("+".join(names), backends))
