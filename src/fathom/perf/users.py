"""How many users a deployment holds: with all that is asked of it, and with lower costs."""

from __future__ import annotations

from dataclasses import replace

from fathom.perf.calibration import Calibration
from fathom.perf.candidate import Candidate, Demand, candidate, predicted
from fathom.spec.hardware import Cluster

MOST_USERS = 2048


def with_users(
    one: Candidate, users: int, cluster: Cluster, demand: Demand, calibration: Calibration
) -> Candidate:
    """The same deployment with another number of users."""
    asked = replace(demand, users=users)
    made = candidate(one.working.spec, cluster, asked, one.layout, one.precision, one.kv)
    return predicted(made, cluster, asked, calibration) if made.fits else made


def most_users(
    candidates: tuple[Candidate, ...], cluster: Cluster, demand: Demand, calibration: Calibration
) -> int:
    """With how many users, up to MOST_USERS, one of the deployments in the formats of the first
    does all that is asked; 0 where none does with a single one.

    Waiting grows with the users, so that each deployment is tried with more and more until it
    fails, and then with the middle of what is left.
    """
    formats, most = (candidates[0].precision, candidates[0].kv), 0
    for one in candidates:
        if not one.fits or (one.precision, one.kv) != formats:
            continue
        beyond, step = MOST_USERS + 1, 1
        while most + 1 < beyond:
            users = min(most + step, (most + beyond) // 2)
            if with_users(one, users, cluster, demand, calibration).does_all:
                most, step = users, 2 * users
            elif users == most + 1:
                break
            else:
                beyond = users
    return most


def busiest(
    best: Candidate, cluster: Cluster, demand: Demand, calibration: Calibration
) -> Candidate | None:
    """The same deployment with as many more users as it still does all with and answers more: twice
    as many each time. None where it does not take twice as many."""
    found, users = None, best.users
    while not best.shortfalls and users < MOST_USERS:
        users *= 2
        one = with_users(best, users, cluster, demand, calibration)
        is_worse = not one.fits or one.shortfalls or one.context < best.context
        if is_worse or one.output_per_s <= (found or best).output_per_s:
            break
        found = one
    return found
