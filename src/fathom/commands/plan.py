"""`fathom plan MODEL [--gpu 8xH20-96]`: does it fit, what will it do, what does it cost. Neither
torch nor a network nor a GPU is needed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from fathom.commands.files import read_text
from fathom.commands.hardware import read_calibration, read_catalogue, read_machines
from fathom.commands.plan_flags import Asked, cost_asked, parse
from fathom.errors import CapacityError
from fathom.perf.advise import Option, Verdict, against, changes, machines, verdict
from fathom.perf.calibration import Calibration, built_in
from fathom.perf.candidate import Candidate, Reason, Slo
from fathom.perf.price import CostAsked, Costs, Flow, Prices, built_in_prices, costs, priced
from fathom.perf.search import search
from fathom.perf.users import busiest, most_users
from fathom.spec.catalogue import Catalogue
from fathom.spec.hardware import Cluster
from fathom.spec.known import KnownModel
from fathom.weights.describe import describe_model

# Those that a table shows.
MOST_MACHINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that is said of one machine. `most_users`: with how many at a time it does all that was
    asked; None where neither times nor users were."""

    asked: Asked
    model: KnownModel
    cluster: Cluster
    verdict: Verdict
    candidates: tuple[Candidate, ...]
    changes: tuple[Reason, ...]
    costs: Costs | None
    most_users: int | None
    busiest: tuple[Candidate, Costs] | None
    against: tuple[Reason, ...] | None

    @property
    def best(self) -> Candidate:
        """The first choice."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines that do what is asked."""

    asked: Asked
    model: KnownModel
    options: tuple[Option, ...]
    currency: str


def main(arguments: list[str]) -> int:
    """Print the plan; gives 0, or the code of CapacityError where nothing does what is asked."""
    asked = parse(arguments)
    answer = plan(asked)
    if asked.as_json:
        from fathom.commands.plan_json import to_json

        sys.stdout.write(to_json(answer))
    else:
        from fathom.commands.plan_text import told

        print("\n".join(told(answer)))
    if isinstance(answer, Machines):
        return 0 if answer.options else CapacityError.exit_code
    if asked.emit is not None:
        from fathom.commands.plan_emit import emit

        for note in emit(answer, Path(asked.emit)):
            print(note, file=sys.stderr if asked.as_json else sys.stdout)
    is_bad = bool(answer.against) if asked.claim else answer.verdict == "no"
    return CapacityError.exit_code if is_bad else 0


def plan(asked: Asked) -> Answer | Machines:
    """What is to be said. Raises: ConfigError for what is unknown or impossible."""
    catalogue, prices = read_catalogue(asked.hardware), _prices(asked)
    model = describe_model(asked.model)
    length, longest = asked.demand.context or asked.demand.request_len, model.spec.max_position
    if length > longest:
        raise asked.words.error("model_length", found=f"{length:,}", wanted=f"{longest:,}")
    money = priced(cost_asked(asked, prices), prices, model.name)
    if asked.gpu is None:
        currency = money.currency
        found = machines(
            model.spec, asked.demand, catalogue, built_in(), prices, currency, most=MOST_MACHINES
        )
        return Machines(asked=asked, model=model, options=found, currency=currency)
    cluster, calibration = _machines(asked, catalogue)
    candidates = search(model.spec, cluster, asked.demand, calibration)
    said, demand = verdict(candidates), asked.demand
    claim, best, most = asked.claim, candidates[0], None
    if best.fits and (demand.slo != Slo() or demand.users):
        # Where the context that was asked has no room, in the longest that has.
        shorter = replace(demand, context=best.context) if best.is_short else demand
        most = most_users(candidates, cluster, shorter, calibration)
    better: tuple[Reason, ...] = ()
    if said != "yes" and claim is None:
        users = most or 0
        # Other machines are GPUs.
        others = built_in() if cluster.is_host else calibration
        better = tuple(
            changes(model.spec, cluster, demand, candidates, catalogue, others, users=users)
        )
    spent = _costs(asked, cluster, best, prices, money)
    busy = busiest(best, cluster, demand, calibration) if best.fits else None
    full = None if busy is None else _costs(asked, cluster, busy, prices, money)
    return Answer(
        asked=asked,
        model=model,
        cluster=cluster,
        verdict=said,
        candidates=candidates,
        changes=better,
        costs=spent,
        most_users=most,
        busiest=None if busy is None or full is None else (busy, full),
        against=None
        if claim is None
        else tuple(against(claim, model.spec, cluster, candidates, calibration)),
    )


def _prices(asked: Asked) -> Prices:
    prices = built_in_prices()
    if asked.prices is None:
        return prices
    return prices.changed(read_text("--prices", asked.prices, "TOML"), asked.prices)


def _machines(asked: Asked, catalogue: Catalogue) -> tuple[Cluster, Calibration]:
    assert asked.gpu is not None
    if asked.gpu != "local":
        return read_machines(
            asked.gpu,
            nodes=asked.nodes,
            network=asked.network,
            calibration=asked.calibration,
            catalogue=catalogue,
        )
    from fathom.runtime.nvml import installed_cluster

    cluster = installed_cluster(catalogue)
    if cluster is None:
        raise asked.words.error("no_gpu", wanted="--gpu 8xH20-96, --gpu cpu")
    return cluster, read_calibration(asked.calibration, cluster)


def _costs(
    asked: Asked, cluster: Cluster, best: Candidate, prices: Prices, money: CostAsked
) -> Costs | None:
    if best.steady is None:
        return None
    demand = asked.demand
    flow = Flow(
        input_len=demand.input_len,
        output_len=demand.output_len,
        cached_len=demand.cached_len,
        requests_per_s=best.steady.requests_per_s,
    )
    gpu = cluster.gpu
    if money.kwh is not None and not gpu.tdp_w:
        raise asked.words.error("no_tdp", found=gpu.name)
    price = prices.gpu(gpu.id, money.currency)
    return costs(flow, num_gpus=cluster.num_gpus, tdp_w=gpu.tdp_w, gpu=price, asked=money)
