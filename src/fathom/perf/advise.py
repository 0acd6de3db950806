"""What to answer: the verdict, what to change where it is no, the machines that would do, and what
speaks against a claim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration
from fathom.perf.candidate import (
    Candidate,
    Demand,
    Reason,
    candidate,
    format_seconds,
    predicted,
    reason,
)
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.held_weights import Holding, weight_lines
from fathom.perf.memory import total_bytes
from fathom.perf.parts import Formats
from fathom.perf.precision import Precision, caches, precisions
from fathom.perf.price import GpuPrice, Prices
from fathom.perf.search import layouts
from fathom.perf.shape import decode_shape, prefill_shape
from fathom.perf.steady import Load, steady
from fathom.spec.catalogue import Catalogue, parse_cluster
from fathom.spec.families import Model
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.units import format_bytes

Verdict = Literal["yes", "limited", "other", "no"]
# GPUs of a deployment, in the order in which they are tried.
_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def verdict(candidates: tuple[Candidate, ...]) -> Verdict:
    """`yes`: all that is asked, in the published (or asked) weights; `limited`: it runs, and falls
    short of something; `other`: it runs in other weights only."""
    best = candidates[0]
    if not best.fits:
        return "no"
    if not best.precision.is_exact:
        return "other"
    return "limited" if best.shortfalls or best.is_short else "yes"


@dataclass(frozen=True, slots=True)
class Option:
    """A machine that does what is asked, and what it costs an hour where that is known."""

    cluster: Cluster
    best: Candidate
    price: GpuPrice | None

    @property
    def hour(self) -> float | None:
        """Of all its GPUs."""
        return None if self.price is None else self.price.hour * self.cluster.num_gpus


def name_of(cluster: Cluster) -> str:
    """As `--gpu` takes it."""
    return "cpu" if cluster.is_host else f"{cluster.num_gpus}x{cluster.gpu.id}"


def changes(
    model: Model,
    cluster: Cluster,
    demand: Demand,
    candidates: tuple[Candidate, ...],
    catalogue: Catalogue,
    calibration: Calibration,
    *,
    users: int = 0,
) -> Iterator[Reason]:
    """What would do all that is asked: each one tried, the smallest change first. `users`: with how
    many the best context would do; 0 where it is not known."""
    best = candidates[0]
    if best.fits and best.precision.is_exact:
        if {one.key for one in best.shortfalls} <= {"context"}:
            if best.is_short:
                yield reason("change_context", most=best.context)
        elif 0 < users < best.users and best.is_short:
            yield reason("change_context_users", context=best.context, most=users)
        elif 0 < users < best.users:
            yield reason("change_users", most=users)
    seen: set[str] = set()
    for one in candidates:
        name = one.precision.name
        if one.does_all:
            is_other = not one.precision.is_exact
            if name not in seen and (is_other or one is not best):
                key = "change_kv" if not is_other else "change_weights"
                if is_other and not one.is_exact_kv:
                    key = "change_both"
                yield reason(key, weights=name)
            seen.add(name)
    bigger = (one for one in catalogue.gpus if one.market != "aftermarket")
    larger = [one for one in bigger if one.memory_bytes > cluster.gpu.memory_bytes]
    same_market = [one for one in larger if one.market == cluster.gpu.market] or larger
    count = cluster.num_gpus
    if not cluster.is_host:
        more = smallest(model, cluster.gpu.id, demand, catalogue, calibration, more_than=count)
        if more is not None:
            yield reason("change_more", machine=name_of(more.cluster))
    for gpu in sorted(same_market, key=lambda one: one.memory_bytes):
        machine = parse_cluster(f"{count}x{gpu.id}", catalogue=catalogue)
        if _does(model, machine, demand, calibration) is not None:
            yield reason("change_gpu", machine=name_of(machine))
            return


def smallest(
    model: Model,
    gpu: str,
    demand: Demand,
    catalogue: Catalogue,
    calibration: Calibration,
    *,
    more_than: int = 0,
) -> Option | None:
    """The fewest of a GPU that do what is asked; None where none of the usual numbers does. Of more
    than a machine has, by all layouts."""
    for count in _COUNTS:
        if count > more_than:
            cluster = parse_cluster(f"{count}x{gpu}", catalogue=catalogue)
            best = _does(model, cluster, demand, calibration, tries_all=more_than > 0)
            if best is not None:
                return Option(cluster, best, None)
    return None


def machines(
    model: Model,
    demand: Demand,
    catalogue: Catalogue,
    calibration: Calibration,
    prices: Prices,
    currency: str,
    *,
    most: int | None = None,
) -> tuple[Option, ...]:
    """The machines of the catalogue that do what is asked, one of each GPU, up to `most`: the
    cheapest first, then those without a known price, the fewest GPUs first. Each with the layout
    that a plan of that machine has for its first choice."""
    found = []
    for gpu in catalogue.gpus:
        option = smallest(model, gpu.id, demand, catalogue, calibration)
        if option is not None:
            found.append(replace(option, price=prices.gpu(gpu.id, currency)))
    found.sort(key=lambda one: (one.hour is None, one.hour or 0.0, one.cluster.num_gpus))
    chosen = []
    for one in found[:most]:
        best = _does(model, one.cluster, demand, calibration, tries_all=True)
        chosen.append(replace(one, best=best or one.best))
    return tuple(chosen)


def _does(
    model: Model,
    cluster: Cluster,
    demand: Demand,
    calibration: Calibration,
    *,
    tries_all: bool = False,
) -> Candidate | None:
    """The best candidate where one does all that is asked in the published weights and cache, or in
    those asked: of all layouts, or of two that usually tell: with most room and with least, whose
    answers are quick."""
    try:
        precision = precisions(model, cluster, demand.weights)[0]
    except ConfigError:
        return None
    if not precision.is_exact or not _may_fit(model, cluster, demand, precision):
        return None
    kv = caches(model, demand.kv or "bf16")[0]
    made = [
        candidate(model, cluster, demand, layout, precision, kv, shortens=False)
        for layout in (layouts if tries_all else _few_layouts)(model, cluster)
    ]
    fitting = [one for one in made if one.fits and not one.is_short]
    if not tries_all and len(fitting) > 2:
        by_room = sorted(fitting, key=lambda one: one.kv_tokens)
        fitting = [by_room[-1], by_room[0]]
    timed = [predicted(one, cluster, demand, calibration) for one in fitting]
    works = [one for one in timed if not one.shortfalls]
    return min(works, key=lambda one: one.rank_key, default=None)


def _may_fit(model: Model, cluster: Cluster, demand: Demand, precision: Precision) -> bool:
    """Whether the weights alone, divided evenly, have room: quick, and never wrong in saying no."""
    holding = Holding(dequantize=precision.dequantize, quantization=precision.quantization)
    whole = total_bytes(weight_lines(model, Layout(), holding))
    return whole <= cluster.gpu.memory_bytes * demand.share * cluster.num_gpus


def _few_layouts(model: Model, cluster: Cluster) -> Iterator[Layout]:
    """Those that usually come out best: cut over a node, half of it, or nothing; stages by node."""
    node = cluster.gpus_per_node
    for layout in layouts(model, cluster):
        if layout.pp in (1, cluster.nodes) and layout.tp in (1, node // 2, node):
            yield layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What someone says of a deployment: requests a second, lengths in tokens (`output_len` None
    where it is not said), mean seconds of a request."""

    per_s: float | None = None
    input_len: int
    output_len: int | None = None
    mean_s: float


def against(
    claim: Claim,
    model: Model,
    cluster: Cluster,
    candidates: tuple[Candidate, ...],
    calibration: Calibration,
) -> Iterator[Reason]:
    """What speaks against a claim; nothing where it may be so."""
    best = candidates[0]
    exact = min((one for one in candidates if one.precision.is_exact), key=lambda one: one.rank_key)
    if not exact.fits:
        yield reason(
            "claim_memory",
            weights=exact.precision.name,
            bytes=format_bytes(exact.over_bytes),
            gpu=cluster.gpu.name,
        )
    shown = best if best.fits else exact
    formats = Formats(weights=shown.precision.format, kv=shown.kv)
    costs = cost_model(model, shown.layout, cluster, formats, calibration)
    length, answer = claim.input_len, claim.output_len
    first = costs.roofline_s(prefill_shape([(length, length)], num_sampled=1))
    token = costs.roofline_s(decode_shape(1, length))
    said = format_seconds(claim.mean_s)
    for count in {1, answer or 1}:
        floor = first + (count - 1) * token
        if floor > claim.mean_s:
            yield reason(
                "claim_floor", tokens=count, floor=format_seconds(floor), mean=said, length=length
            )
    if answer is None:
        most = int(max(0.0, (claim.mean_s - first) / token)) + 1
        yield reason(
            "claim_answer",
            length=length,
            most=most,
            mean=said,
            whole=format_seconds(first + (length - 1) * token),
        )
    if claim.per_s is not None:
        yield from _overload(claim, claim.per_s, costs)


def _overload(claim: Claim, per_s: float, costs: CostModel) -> Iterator[Reason]:
    """Whether as many requests as are in service at a time take longer than is claimed."""
    # Little's law: those in service at a time are the rate times the mean.
    users = max(1, round(per_s * claim.mean_s))
    load = Load(concurrency=users, input_len=claim.input_len, output_len=claim.output_len or 1)
    found = steady(costs, load)
    if found.request_s > claim.mean_s:
        yield reason(
            "claim_load",
            users=users,
            qps=f"{per_s:g}",
            mean=format_seconds(claim.mean_s),
            found=format_seconds(found.request_s),
            rate=f"{found.requests_per_s:.3g}",
        )
