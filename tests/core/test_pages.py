"""The page pool against a set of free pages (the dumb allocator)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.pages import PagePool
from tests.core.invariants import check_pool


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_pages_are_conserved(num_pages: int, calls: list[tuple[bool, int]]) -> None:
    pool, held, free = PagePool(num_pages), list[int](), set(range(num_pages))
    for is_take, count in calls:
        if is_take:
            pages = pool.take(min(count, pool.num_free))
            assert free.issuperset(pages)
            assert len(set(pages)) == min(count, len(free))
            free.difference_update(pages)
            held += pages
        else:
            returned, held = held[:count], held[count:]
            pool.give(returned)
            free.update(returned)
        assert pool.num_free == len(free)
        check_pool(pool, held)


def test_a_page_cannot_be_returned_twice() -> None:
    pool = PagePool(2)
    pages = pool.take(1)
    pool.give(pages)
    with pytest.raises(AssertionError, match="returned twice"):
        pool.give(pages)


def test_a_lost_page_is_noticed() -> None:
    pool = PagePool(2)
    pool.take(1)
    with pytest.raises(AssertionError, match="lost"):
        check_pool(pool, ())
