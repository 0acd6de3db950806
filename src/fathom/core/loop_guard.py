"""Notices that an answer goes round in circles: the same tokens, again and again, word for word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ANCHOR_EVERY = 16  # tokens between places that are remembered
_GRAM = 8  # tokens that must recur before a period is tried
_BASE, _MODULUS = 1_000_003, (1 << 61) - 1
_LEAVING = pow(_BASE, _GRAM, _MODULUS)


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """What counts as a loop: `num_tokens` in a row (0: nothing does) that are one stretch of at
    most `max_period` tokens, at least `num_repeats` times over."""

    num_tokens: int = 1024
    num_repeats: int = 8
    max_period: int = 2048


class LoopGuard:
    """Watches one answer, a token at a time.

    A rolling hash of the last tokens is compared with those at anchors behind; where one recurs,
    its distance is tried as the period, and a count of tokens that equal the one a period before
    decides. A period that breaks is dropped. So only exact repetition counts: rows of a table, code
    and lists whose lines differ in a number do not.
    Cost: constant per token, in time and memory.
    """

    __slots__ = ("_anchors", "_hash", "_limits", "_order", "_period", "_run")

    def __init__(self, limits: LoopLimits) -> None:
        self._limits = limits
        self._anchors: dict[int, int] = {}  # hash of the tokens up to a position: the position
        self._order: list[int] = [0] * (limits.max_period // _ANCHOR_EVERY)  # a ring of hashes
        self._hash = self._period = self._run = 0

    def is_loop(self, tokens: Sequence[int], start: int) -> bool:
        """Whether the answer, `tokens` from `start` on, loops by now. Call it after each token."""
        token, index = tokens[-1], len(tokens) - 1 - start
        leaving = tokens[-1 - _GRAM] if index >= _GRAM else 0
        self._hash = (self._hash * _BASE + token + 1 - (leaving + (index >= _GRAM)) * _LEAVING) % (
            _MODULUS
        )
        if self._period:
            if tokens[-1 - self._period] == token:
                self._run += 1
                limits = self._limits
                wanted = max(limits.num_tokens, limits.num_repeats * self._period)
                return self._run + self._period >= wanted
            self._period = self._run = 0
        if index >= _GRAM:
            anchor = self._anchors.get(self._hash)
            if anchor is not None and index - anchor <= self._limits.max_period:
                self._period = index - anchor
        if index % _ANCHOR_EVERY == 0:
            self._remember(index)
        return False

    def _remember(self, index: int) -> None:
        """Make `index` an anchor in place of the one that is now too far behind."""
        slot = index // _ANCHOR_EVERY % len(self._order)
        old = self._order[slot]
        if self._anchors.get(old, index) <= index - self._limits.max_period:
            del self._anchors[old]
        self._order[slot] = self._hash
        self._anchors[self._hash] = index
