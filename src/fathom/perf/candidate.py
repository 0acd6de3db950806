"""One way in which a cluster could hold a model: what it leaves for KV, what it would do under a
load, and which demands it does not meet.

Bytes come from the ledger that the engine allocates by, times from the cost model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from fathom.perf.calibration import Calibration
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.memory import kv_bytes_per_token, kv_capacity, rank_ledger, total_bytes
from fathom.perf.parts import Formats
from fathom.perf.precision import Precision
from fathom.perf.shape import StepShape, decode_shape
from fathom.perf.steady import Load, Steady, steady
from fathom.perf.working import WorkingSet
from fathom.spec.families import Model
from fathom.spec.formats import BFLOAT16, Format
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.spec.plan import MemoryLine
from fathom.units import format_count

# Of a GPU's memory, that a deployment may use: the engine's own default (`perf/resolve.py`).
DEVICE_SHARE = 0.92
# Positions of a step; fewer leave more room for KV and slow prompts down.
CHUNKS = (8192, 4096, 2048, 1024)
_HOST_CHUNKS = (512,)
_USUAL_USERS = 64
# Of a step and replica, by the device; more wait.
_MOST_SEQUENCES = {"cuda": 1024, "cpu": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What users may have to wait at most, in means. None: not asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of a deployment. None: whatever comes out best. `context` and lengths in
    tokens; `cached_len` of a prompt is found in the prefix cache."""

    context: int | None = None
    users: int | None = None
    input_len: int = 2000
    output_len: int = 500
    cached_len: int = 0
    slo: Slo = field(default_factory=Slo)
    weights: str | None = None
    kv: str | None = None
    layout: Layout | None = None
    share: float = DEVICE_SHARE

    @property
    def request_len(self) -> int:
        """Tokens of a request at its end."""
        return self.input_len + self.output_len


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a candidate lost, or what to change: a key of the messages, and what fills its gaps."""

    key: str
    values: tuple[tuple[str, str], ...] = ()


def reason(key: str, **values: object) -> Reason:
    """A reason whose gaps are filled as they will be shown."""
    return Reason(key, tuple((name, str(value)) for name, value in values.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to deploy. `over_bytes`: of a rank, missing where it is over 0. `kv_tokens`: of all
    replicas together; `context`: the longest sequence that fits, at most the demanded one;
    `needed_tokens`: of each replica's pool, for what is asked.
    `shortfalls`: demands that it does not meet; `steady` where a request fits."""

    layout: Layout
    precision: Precision
    kv: Format
    working: WorkingSet
    ledger: tuple[MemoryLine, ...]
    limit_bytes: int
    over_bytes: int
    kv_tokens: int
    context: int
    asked_context: int
    needed_tokens: int
    users: int
    model: CostModel | None = None
    steady: Steady | None = None
    shortfalls: tuple[Reason, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether weights, a step and a request have room."""
        return self.over_bytes <= 0

    @property
    def is_exact_kv(self) -> bool:
        """Whether the cache is not quantised."""
        return self.kv == BFLOAT16

    @property
    def is_short(self) -> bool:
        """Whether its longest sequence is shorter than what is asked, or than the model's own."""
        return self.context < self.asked_context

    @property
    def does_all(self) -> bool:
        """Whether it does all that is asked."""
        return self.fits and not self.shortfalls and not self.is_short

    @property
    def kv_tokens_each(self) -> int:
        """Tokens of one replica's pool."""
        return self.kv_tokens // self.layout.dp

    def users_at(self, num_tokens: int) -> int:
        """Sequences of that length that the pools hold at a time."""
        each = min(self.kv_tokens_each // num_tokens, _MOST_SEQUENCES[self.working.device])
        return self.layout.dp * each if self.fits else 0

    @property
    def output_per_s(self) -> float:
        """Tokens of answers; 0 where no request fits."""
        return self.steady.output_per_s if self.steady else 0.0

    def decode_step(self, demand: Demand) -> StepShape:
        """A step of the mean batch, whose answers are half done."""
        batch = max(1, round(self.steady.batch)) if self.steady else 1
        return decode_shape(batch, round(batch * (demand.input_len + demand.output_len / 2)))

    @property
    def needed_kv_bytes(self) -> int:
        """Of a rank, for what is asked: one sequence of the context, or all users' requests."""
        token = kv_bytes_per_token(self.working.spec, self.kv, self.layout)
        return self.needed_tokens * token

    @property
    def needed_bytes(self) -> int:
        """Of a rank, for what is asked: the ledger with a cache of that size."""
        working = replace(self.working, max_model_len=self.asked_context)
        return total_bytes(rank_ledger(working, kv_format=self.kv, kv_tokens=self.needed_tokens))

    @property
    def rank_key(self) -> tuple[float, ...]:
        """The best one first: what fits, keeps the weights as published, meets the demands, keeps
        the cache, has room for the longest sequence or comes nearest to it, and answers most."""
        missed = [one.key for one in self.shortfalls]
        nearest = -self.context if self.is_short else 0
        score = -self.output_per_s if self.fits else float(self.over_bytes)
        inexact = not self.precision.is_exact
        kept = not self.fits, inexact, len(missed), not self.is_exact_kv, self.is_short
        return *kept, nearest, score


def candidate(
    model: Model,
    cluster: Cluster,
    demand: Demand,
    layout: Layout,
    precision: Precision,
    kv: Format,
    *,
    shortens: bool = True,
) -> Candidate:
    """The memory of one deployment, with the largest steps that leave room for what is asked.
    `shortens`: where the context has no room, with the longest that has."""
    asked = demand.context or model.max_position
    limit = int(cluster.gpu.memory_bytes * demand.share)
    users = demand.users or _USUAL_USERS
    each = -(-users // layout.dp)
    needed = max(asked, each * demand.request_len if demand.users else 0)
    sequences = min(each, _MOST_SEQUENCES[cluster.device])
    for chunk in _HOST_CHUNKS if cluster.is_host else CHUNKS:
        working = WorkingSet(
            device=cluster.device,
            ops_backend=cluster.ops_backend,
            threads=max(1, cluster.host_threads),
            spec=model,
            layout=layout,
            dequantize=precision.dequantize,
            max_batch_tokens=max(chunk, sequences),
            max_sequences=sequences,
            max_model_len=asked,
            quantization=precision.quantization,
        )
        room = kv_capacity(working, kv_format=kv, limit_bytes=limit)
        if room >= needed:
            break
    if room < asked and shortens:
        working, room = _shortened(working, kv, limit)
    over = -room if room <= 0 else 0
    lines = rank_ledger(working, kv_format=kv, kv_tokens=max(0, room))
    missing = total_bytes(lines) - limit if over else 0
    if room < demand.request_len and not missing:
        needs = rank_ledger(working, kv_format=kv, kv_tokens=demand.request_len)
        missing = total_bytes(needs) - limit
    return Candidate(
        layout=layout,
        precision=precision,
        kv=kv,
        working=working,
        ledger=lines,
        limit_bytes=limit,
        over_bytes=missing,
        kv_tokens=max(0, room) * layout.dp,
        context=min(asked, max(0, room)),
        asked_context=asked,
        needed_tokens=needed,
        users=users,
    )


def _shortened(working: WorkingSet, kv: Format, limit: int) -> tuple[WorkingSet, int]:
    """With the longest context for which one sequence fits, and the room for KV then."""
    page = working.page_size
    low, high = 1, max(1, working.max_model_len // page)
    while low < high:
        middle = (low + high + 1) // 2
        room = kv_capacity(_of(working, middle * page), kv_format=kv, limit_bytes=limit)
        low, high = (middle, high) if room >= middle * page else (low, middle - 1)
    short = _of(working, low * page)
    return short, kv_capacity(short, kv_format=kv, limit_bytes=limit)


def _of(working: WorkingSet, max_model_len: int) -> WorkingSet:
    return replace(working, max_model_len=max_model_len)


def predicted(
    one: Candidate, cluster: Cluster, demand: Demand, calibration: Calibration
) -> Candidate:
    """What a candidate that fits does under the load, and which demands it misses."""
    formats = Formats(weights=one.precision.format, kv=one.kv)
    costs = cost_model(one.working.spec, one.layout, cluster, formats, calibration)
    users = demand.users or max(1, min(one.users, one.users_at(demand.request_len)))
    load = Load(
        concurrency=users,
        input_len=demand.input_len,
        output_len=demand.output_len,
        cached_len=demand.cached_len,
        chunk_len=one.working.max_batch_tokens,
        kv_tokens=one.kv_tokens,
    )
    done = replace(one, model=costs, steady=steady(costs, load), users=users)
    return replace(done, shortfalls=tuple(_shortfalls(done, demand)))


def _shortfalls(one: Candidate, demand: Demand) -> Iterator[Reason]:
    found = one.steady
    assert found is not None
    if demand.context and one.context < demand.context:
        yield reason("context", most=format_count(one.context), asked=format_count(demand.context))
    held = one.users_at(demand.request_len)
    if demand.users and held < demand.users:
        yield reason("users", most=format_count(held), asked=format_count(demand.users))
    times: tuple[tuple[Literal["ttft", "tpot", "e2e"], float, float | None], ...] = (
        ("ttft", found.ttft_s, demand.slo.ttft_s),
        ("tpot", found.tpot_s, demand.slo.tpot_s),
        ("e2e", found.request_s, demand.slo.e2e_s),
    )
    for name, seconds, most in times:
        if most is not None and seconds > most:
            yield reason(name, found=format_seconds(seconds), asked=format_seconds(most))


def format_seconds(seconds: float) -> str:
    """`68 ms`, `1.25 s`: three significant digits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
