"""Every way in which a cluster could hold a model, the best one first, and why all others lost."""

from __future__ import annotations

from collections.abc import Iterator

from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration
from fathom.perf.candidate import Candidate, Demand, Reason, candidate, predicted, reason
from fathom.perf.precision import caches, precisions
from fathom.spec.families import Model, check_layout, num_experts, tensor_parallel_sizes
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.units import format_bytes, format_count

_MOST_STAGES = 64


def layouts(model: Model, cluster: Cluster) -> Iterator[Layout]:
    """Every layout that divides the model over all GPUs, experts whole or cut over all ranks."""
    count = cluster.num_gpus
    sizes = tensor_parallel_sizes(model, count)
    for pp in range(1, min(count, model.num_layers, _MOST_STAGES) + 1):
        for tp in sizes if count % pp == 0 else ():
            stage = count // pp
            for ep in sorted({1, stage}) if stage % tp == 0 else ():
                layout = Layout(tp=tp, dp=stage // tp, ep=ep, pp=pp)
                if ep == 1 or num_experts(model):
                    try:
                        check_layout(model, layout)
                    except ConfigError:
                        continue
                    yield layout


def check_asked(model: Model, cluster: Cluster, layout: Layout) -> None:
    """Raises: ConfigError where an asked layout does not divide the model or the cluster."""
    check_layout(model, layout)
    if layout.world_size != cluster.num_gpus:
        product = f"{layout.tp} x {layout.dp} x {layout.pp} = {layout.world_size} ranks"
        raise ConfigError(
            "--layout",
            found=f"tp x dp x pp = {product} on {cluster.num_gpus} GPUs",
            wanted="a rank for each GPU",
        )


def search(
    model: Model, cluster: Cluster, demand: Demand, calibration: Calibration
) -> tuple[Candidate, ...]:
    """All candidates, the best one first. Raises: ConfigError for an asked layout or format that is
    impossible."""
    if demand.layout is not None:
        check_asked(model, cluster, demand.layout)
    every = (demand.layout,) if demand.layout else tuple(layouts(model, cluster))
    if not every:
        raise ConfigError(
            "--gpu",
            found=f"{cluster.num_gpus} GPUs, over which no layout divides the model",
            wanted="another number, such as 8, 16 or 32",
        )
    best: Candidate | None = None
    found: list[Candidate] = []
    for precision in precisions(model, cluster, demand.weights):
        for kv in caches(model, demand.kv):
            # Where something more exact does all that is asked, one line shows what this would be.
            is_settled = best is not None and best.fits and not best.shortfalls
            tried = (best.layout,) if best is not None and is_settled else every
            for layout in tried:
                one = candidate(model, cluster, demand, layout, precision, kv)
                found.append(predicted(one, cluster, demand, calibration) if one.fits else one)
            best = min(found, key=lambda one: one.rank_key)
    return tuple(sorted(found, key=lambda one: one.rank_key))


def why_lost(one: Candidate, best: Candidate) -> Reason:
    """The first reason for which `one` comes after `best`."""
    if not one.fits:
        return reason("over", bytes=format_bytes(one.over_bytes))
    if not one.precision.is_exact and best.precision.is_exact:
        return reason("inexact", weights=one.precision.name)
    if len(one.shortfalls) > len(best.shortfalls):
        return one.shortfalls[0]
    if best.is_exact_kv and not one.is_exact_kv:
        return reason("inexact_kv")
    if "context" in [missed.key for missed in one.shortfalls] and one.context < best.context:
        return one.shortfalls[0]
    if one.is_short and one.context < best.context:
        most, asked = format_count(one.context), format_count(one.asked_context)
        return reason("short", most=most, asked=asked)
    less = 1 - one.output_per_s / best.output_per_s
    return reason("slower", less=f"{less:.0%}")
