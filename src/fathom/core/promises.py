"""Prefixes that running sequences are about to compute, so that others can wait for them.

A tree over whole pages, like the prefix cache, of the known tokens of every sequence whose prefill
has begun and not ended. Requests that are sent together with one long prefix find it here before
the cache has a page of it: one computes it, and the others are admitted when it is there.
"""

from __future__ import annotations

from collections.abc import Sequence


class _Node:
    """One page; `holders` counts the sequences that promise it."""

    __slots__ = ("children", "holders")

    def __init__(self) -> None:
        self.children: dict[tuple[int, ...], _Node] = {}
        self.holders = 0


class Promises:
    """Pages by the tokens that they and the pages before them hold; salts are kept apart."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._roots: dict[str, _Node] = {}

    def add(self, salt: str, token_ids: Sequence[int]) -> None:
        """Promise the whole pages of `token_ids`."""
        node = self._roots.setdefault(salt, _Node())
        for key in self._keys(token_ids):
            node = node.children.setdefault(key, _Node())
            node.holders += 1

    def remove(self, salt: str, token_ids: Sequence[int]) -> None:
        """Take back what `add` was given."""
        node = self._roots[salt]
        for key in self._keys(token_ids):
            child = node.children[key]
            child.holders -= 1
            if not child.holders:
                del node.children[key]  # what lies below has other holders only with this one
                break
            node = child
        if not self._roots[salt].children:
            del self._roots[salt]

    def num_pages(self, salt: str, token_ids: Sequence[int], max_pages: int) -> int:
        """Pages, at most `max_pages`, of the longest promised prefix of `token_ids`."""
        node, found = self._roots.get(salt), 0
        while node is not None and found < max_pages:
            start = found * self._page_size
            node = node.children.get(tuple(token_ids[start : start + self._page_size]))
            found += node is not None
        return found

    def _keys(self, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        size = self._page_size
        return [
            tuple(token_ids[start : start + size])
            for start in range(0, len(token_ids) - size + 1, size)
        ]
