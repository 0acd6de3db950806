"""Finds where a function of a few numbers is least, without its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

Point = tuple[float, ...]


def minimize(
    score: Callable[[Point], float], start: Sequence[float], *, step: float = 0.3, rounds: int = 400
) -> Point:
    """The best point found by a simplex that walks, stretches and shrinks from `start`.

    Source: Nelder and Mead, A simplex method for function minimization (1965), with their constants
    1, 2, 1/2 and 1/2. Cost: one or two calls of `score` a round.
    """
    first = tuple(start)
    points = [first]
    for index, value in enumerate(first):
        moved = list(first)
        moved[index] = value + step
        points.append(tuple(moved))
    scored = sorted((score(point), point) for point in points)
    for _ in range(rounds):
        worst, rest = scored[-1], scored[:-1]
        centre = tuple(
            sum(column) / len(rest) for column in zip(*(p for _, p in rest), strict=True)
        )
        mirrored = _along(centre, worst[1], -1.0)
        found = (score(mirrored), mirrored)
        if found[0] < scored[0][0]:
            stretched = _along(centre, worst[1], -2.0)
            found = min(found, (score(stretched), stretched))
        elif found[0] >= rest[-1][0]:
            halved = _along(centre, worst[1], 0.5)
            found = (score(halved), halved)
            if found[0] >= worst[0]:
                best = scored[0][1]
                rest = [scored[0]]
                for _, point in scored[1:]:
                    shrunk = _along(best, point, 0.5)
                    rest.append((score(shrunk), shrunk))
                scored = sorted(rest)
                continue
        scored = sorted([*rest, found])
    return scored[0][1]


def minimize_positive(
    score: Callable[[Point], float], start: Sequence[float], *, rounds: int = 400
) -> Point:
    """The same for numbers above 0, which may differ by orders of magnitude."""
    best = minimize(
        lambda point: score(tuple(map(exp, point))), [log(value) for value in start], rounds=rounds
    )
    return tuple(map(exp, best))


def _along(centre: Point, point: Point, far: float) -> Point:
    """From `centre` towards `point`, by `far` times their distance."""
    return tuple(c + far * (p - c) for c, p in zip(centre, point, strict=True))
