"""Compares the cache of grammars with a list of all that was ever put into it."""

from __future__ import annotations

from random import Random

from fathom.text.grammar.recent import Recent

MAX_COUNT, MAX_SIZE = 4, 20


def held_of(used: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Keys and sizes of what is held after uses, of which the last is the newest."""
    held: list[tuple[int, int]] = []
    for key, size in reversed(used):
        if key not in dict(held):
            total = sum(size for _, size in held) + size
            if held and (len(held) == MAX_COUNT or total > MAX_SIZE):
                break
            held.append((key, size))
    return held[::-1]


def test_the_newest_that_fit_are_held() -> None:
    pick = Random(5)
    cache: Recent[int, str] = Recent(MAX_COUNT, MAX_SIZE)
    held: list[tuple[int, int]] = []
    for step in range(5000):
        key = pick.randrange(8)
        size = dict(held).get(key)
        assert (cache.get(key) is not None) == (size is not None), step
        if size is None:
            size = pick.choice([1, 3, 7, 30])
            cache.put(key, f"of {key}", size)
        held = held_of([*held, (key, size)])
        if pick.random() < 0.1:
            cache.drop(key)
            held.pop()
