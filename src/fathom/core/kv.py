"""Where sequences keep their KV: the page pool and the prefix tree behind one set of verbs."""

from __future__ import annotations

from fathom.core.pages import PagePool
from fathom.core.promises import Promises
from fathom.core.radix import RadixCache
from fathom.core.sequence import Sequence


class KvSpace:
    """Gives pages to sequences, shares equal prefixes and takes the pages back."""

    def __init__(self, num_pages: int, page_size: int, *, prefix_cache: bool) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._pool = PagePool(num_pages)
        self._cache = RadixCache(page_size)
        self._promises = Promises(page_size)
        self._is_caching = prefix_cache

    @property
    def num_available(self) -> int:
        """Pages that are free, or only cached."""
        return self._pool.num_free + self._cache.num_idle

    def is_promised(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute a longer prefix of a waiting one than is
        cached, so that to wait for it saves at least a page of work."""
        if not self._is_shareable(sequence):
            return False
        salt, max_pages = sequence.request.cache_salt, self._max_shared(sequence)
        promised = self._promises.num_pages(salt, sequence.tokens, max_pages)
        return promised > 0 and promised > len(self._cache.match(salt, sequence.tokens, max_pages))

    def open(self, sequence: Sequence, *, reserve: int) -> bool:
        """Take pages for all known tokens of a waiting sequence, cached ones first.

        Taking them at once means that a prefill that has begun never waits for a page. At least
        the last known token stays to be computed, for its logits. False, and nothing taken, where
        fewer than `reserve` pages would be left.
        """
        if self.num_available <= reserve:
            return False  # at least one page is new: spares a full pool the match, step after step
        num_known = len(sequence.tokens)
        path = []
        if self._is_shareable(sequence):
            max_pages = self._max_shared(sequence)
            path = self._cache.match(sequence.request.cache_salt, sequence.tokens, max_pages)
        num_new = self._num_pages_for(num_known) - len(path)
        num_woken = sum(not node.refs for node in path)
        if self.num_available - num_woken - num_new < reserve:
            return False
        self._cache.lock(path)
        sequence.path = path
        sequence.pages = [node.page for node in path] + self._take(num_new)
        sequence.computed = len(path) * self.page_size
        if self._is_shareable(sequence) and num_known // self.page_size > len(path):
            sequence.promised = num_known
            self._promises.add(sequence.request.cache_salt, sequence.tokens)
        return True

    def _is_shareable(self, sequence: Sequence) -> bool:
        """Prompt logprobs need the logits of every position, so nothing of them may be skipped."""
        return self._is_caching and sequence.request.sampling.prompt_logprobs is None

    def _max_shared(self, sequence: Sequence) -> int:
        """Pages that may be shared: the last known token is computed, for its logits."""
        return (len(sequence.tokens) - 1) // self.page_size

    def grow(self, sequence: Sequence, num_positions: int) -> tuple[int, ...] | None:
        """New pages so that the sequence can hold `num_positions`; None where there are too few."""
        num_new = self._num_pages_for(num_positions) - len(sequence.pages)
        if num_new > self.num_available:
            return None
        pages = self._take(num_new)
        sequence.pages += pages
        return tuple(pages)

    def publish(self, sequence: Sequence, num_committed: int) -> None:
        """Put the pages that the first `num_committed` tokens fill into the prefix tree.

        Not those of a sequence that finds none there: where the tree has equal ones it would hold
        both, and one as long as the pool would preempt itself for ever.
        """
        if not self._is_shareable(sequence):
            return
        path, salt = sequence.path, sequence.request.cache_salt
        while len(path) < num_committed // self.page_size:
            self._cache.extend(path, salt, sequence.tokens, sequence.pages[len(path)])
        if len(path) >= sequence.promised // self.page_size:
            self._keep_promise(sequence)

    def _keep_promise(self, sequence: Sequence) -> None:
        """Take a sequence's prefix out of those that others wait for, if it is there."""
        if sequence.promised:
            tokens = sequence.tokens[: sequence.promised]
            self._promises.remove(sequence.request.cache_salt, tokens)
            sequence.promised = 0

    def release(self, sequence: Sequence) -> None:
        """Take back everything: shared pages stay cached, private ones become free."""
        assert not sequence.in_flight, "pages of a sequence in flight"
        self._keep_promise(sequence)
        self._pool.give(private_pages(sequence))
        self._cache.unlock(sequence.path)
        sequence.path, sequence.pages = [], []

    def flush(self) -> None:
        """Give up every cached page that no sequence holds."""
        while self._cache.num_idle:
            self._pool.give((self._cache.evict(),))

    def _take(self, count: int) -> list[int]:
        while self._pool.num_free < count:
            self._pool.give((self._cache.evict(),))
        return self._pool.take(count)

    def _num_pages_for(self, num_positions: int) -> int:
        return -(-num_positions // self.page_size)


def private_pages(sequence: Sequence) -> list[int]:
    """Pages that are not the tree's: not full, not committed, or equal to one that was first."""
    path, pages = sequence.path, sequence.pages
    doubles = [page for node, page in zip(path, pages, strict=False) if node.page != page]
    return doubles + pages[len(path) :]
