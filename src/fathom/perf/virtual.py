"""Prompts of a simulation: tokens that nobody reads, so that runs of one id stand for them.

A run is as good as random tokens where only lengths and equal prefixes matter: its id is drawn
from 2^60, so that no two runs begin alike unless they are the same. Millions of tokens are then a
few numbers until the request arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

_ID_BITS = 60


@dataclass(frozen=True, slots=True)
class Runs:
    """A prompt as (id, count) pairs: `count` tokens of this id each, in order."""

    pairs: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return sum(count for _, count in self.pairs)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids())

    def ids(self) -> tuple[int, ...]:
        """Every token's id."""
        ids: tuple[int, ...] = ()
        for token_id, count in self.pairs:
            ids += (token_id,) * count
        return ids

    def __add__(self, other: Runs | tuple[int, ...]) -> Runs:
        more = other.pairs if isinstance(other, Runs) else tuple((one, 1) for one in other)
        return Runs(self.pairs + more)

    def __radd__(self, other: tuple[int, ...]) -> Runs:
        return Runs(tuple((one, 1) for one in other)) + self

    def __getitem__(self, head: slice) -> Runs:
        """The first tokens: `runs[:count]`."""
        assert (head.start, head.step) == (None, None), "only [:count]"
        kept: list[tuple[int, int]] = []
        left = head.stop
        for token_id, count in self.pairs:
            if left <= 0:
                break
            kept.append((token_id, min(count, left)))
            left -= count
        return Runs(tuple(kept))

    def at(self, position: int) -> int | None:
        """The id at a position, None behind the end."""
        for token_id, count in self.pairs:
            if position < count:
                return token_id
            position -= count
        return None


class VirtualVocabulary:
    """Draws runs, where `datasets.Vocabulary` draws tokens."""

    def draw(self, rng: Random, count: int) -> Runs:
        """`count` tokens; equal states of `rng` give equal ones."""
        token_id = rng.getrandbits(_ID_BITS)
        return Runs(((token_id, count),) if count else ())

    def prompt(self, places: Runs | tuple[int, ...], *, as_text: bool) -> Runs:
        """The prompt that has these tokens. There is no text."""
        assert not as_text, "virtual tokens have no text"
        return Runs() + places
