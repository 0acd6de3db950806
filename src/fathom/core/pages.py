"""The pool of KV pages: which are free. Knows nothing of tokens, sequences or plans.

Every page has exactly one owner at any time:

    free list ──take──> a sequence (private) ──publish──> a node of the prefix tree
        ^                      │                               │
        └────────give──────────┴────────────evict──────────────┘

A page in the tree may be *used* by many sequences; the tree's node counts them.
"""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Free pages, handed out most recently returned first (their memory is the warmest)."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_free = bytearray(b"\x01") * num_pages

    @property
    def num_free(self) -> int:
        """Pages that `take` can give at once."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages, now the caller's. The caller has made sure that they are there."""
        assert count <= len(self._free), f"took {count} pages of {len(self._free)}"
        if not count:
            return []
        pages = self._free[-count:]
        pages.reverse()
        del self._free[-count:]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def give(self, pages: Iterable[int]) -> None:
        """Return pages that no plan in flight mentions any more."""
        for page in pages:
            assert not self._is_free[page], f"page {page} returned twice"
            self._is_free[page] = 1
            self._free.append(page)
