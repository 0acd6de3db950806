"""What holds between sequences, their order, pages and the prefix tree after every call."""

from __future__ import annotations

from collections.abc import Iterable

from fathom.core.kv import KvSpace, private_pages
from fathom.core.pages import PagePool
from fathom.core.radix import Node, RadixCache
from fathom.core.scheduler import Scheduler
from fathom.core.sequence import Sequence, Status


def check_scheduler(scheduler: Scheduler) -> None:
    waiting, running = scheduler._waiting, scheduler._running
    for order in (waiting, running):
        assert [s.key for s in order] == sorted(s.key for s in order)
    assert len(running) <= scheduler._max_running
    assert all(s.status is Status.RUNNING for s in running)
    assert not any(s.pages or s.path or s.in_flight for s in waiting)
    live = {s.id for s in waiting + running}
    ended = [s for s in scheduler._sequences.values() if s.id not in live]
    assert live == set(scheduler._ids.values())
    assert all(s.status is Status.FINISHED and s.in_flight for s in ended)
    check_kv(scheduler._kv, scheduler._sequences.values())


def check_kv(kv: KvSpace, holders: Iterable[Sequence]) -> None:
    """Each page has one owner and each lock a holder; `holders` are all that hold pages."""
    owned, num_locks = check_cache(kv._cache)
    num_promised = 0
    for sequence in holders:
        owned += private_pages(sequence)
        num_promised += sequence.promised // kv.page_size
        num_locks -= len(sequence.path)
    check_pool(kv._pool, owned)
    assert not num_locks, f"{num_locks} locks that no sequence holds"
    nodes, found = list(kv._promises._roots.values()), 0
    while nodes:
        node = nodes.pop()
        found += node.holders
        nodes += node.children.values()
    assert found == num_promised, "promises that no sequence keeps"


def check_pool(pool: PagePool, owned: Iterable[int]) -> None:
    """`owned` and the free pages are all the pages, each exactly once."""
    pages = sorted([*owned, *pool._free])
    assert pages == list(range(pool.num_pages)), f"lost, shared or doubled pages: {pages}"
    assert sum(pool._is_free) == len(pool._free)


def check_cache(cache: RadixCache) -> tuple[list[int], int]:
    """What the head of `core/radix.py` promises; gives the tree's pages and its locks."""
    pages, num_locks = [], 0
    idle: set[Node] = set()
    stack = list(cache._root.children.values())
    while stack:
        node = stack.pop()
        assert node.parent is not None
        assert node.parent.children[node.key] is node
        assert isinstance(node.key, tuple)
        ids = node.key[1] if node.parent is cache._root else node.key
        assert len(ids) == cache._page_size, "a page that was not full"
        assert node.refs >= sum(child.refs for child in node.children.values())
        pages.append(node.page)
        num_locks += node.refs
        stack += node.children.values()
        if not node.refs:
            idle.add(node)
    assert idle == set(cache._idle)
    seen: set[Node] = set()
    for node in cache._idle:
        assert seen.issuperset(node.children.values()), "a parent would be evicted first"
        seen.add(node)
    return pages, num_locks
