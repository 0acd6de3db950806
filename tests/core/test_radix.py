"""The prefix tree against a list of (salt, prefix) pairs in order of last use."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.radix import Node, RadixCache
from tests.core.invariants import check_cache

PAGE = 2


def cached(cache: RadixCache, salt: str, tokens: list[int], first_page: int) -> list[Node]:
    """Put all pages of `tokens` into the cache and let go of them."""
    path = cache.match(salt, tokens, len(tokens) // PAGE)
    cache.lock(path)
    while len(path) < len(tokens) // PAGE:
        assert cache.extend(path, salt, tokens, first_page + len(path))
    cache.unlock(path)
    return path


def test_the_longest_common_prefix_of_whole_pages_is_found() -> None:
    cache = RadixCache(PAGE)
    cached(cache, "", [1, 2, 3, 4, 5, 6], 10)
    for tokens, pages in (
        ([1, 2, 3, 4, 5, 6, 7], [10, 11, 12]),
        ([1, 2, 3, 9], [10]),
        ([1, 9, 3, 4], []),
        ([3, 4], []),
        ([1], []),
    ):
        found = cache.match("", tokens, len(tokens) // PAGE)
        assert [node.page for node in found] == pages
    assert len(cache.match("", [1, 2, 3, 4], 1)) == 1


def test_salts_part_equal_prefixes() -> None:
    cache = RadixCache(PAGE)
    cached(cache, "a", [1, 2, 3, 4], 0)
    assert cache.match("b", [1, 2, 3, 4], 2) == []
    cached(cache, "b", [1, 2, 3, 4], 5)
    assert [node.page for node in cache.match("a", [1, 2, 3, 4], 2)] == [0, 1]
    assert [node.page for node in cache.match("b", [1, 2, 3, 4], 2)] == [5, 6]


def test_a_page_that_comes_second_stays_its_owners() -> None:
    cache = RadixCache(PAGE)
    first: list[Node] = []
    second: list[Node] = []
    assert cache.extend(first, "", [1, 2], 0)
    assert not cache.extend(second, "", [1, 2], 1)
    assert first == second
    assert first[0].refs == 2
    assert check_cache(cache) == ([0], 2)


def test_eviction_takes_the_least_recently_used_leaf_first() -> None:
    cache = RadixCache(PAGE)
    cached(cache, "", [1, 1, 2, 2, 3, 3], 0)  # pages 0, 1, 2
    cached(cache, "", [1, 1, 4, 4], 5)  # 0 and 6
    cached(cache, "", [9, 9], 8)
    reused = cache.match("", [1, 1, 2, 2], 2)
    cache.lock(reused)
    cache.unlock(reused)
    assert [cache.evict() for _ in range(cache.num_idle)] == [2, 6, 8, 1, 0]
    assert check_cache(cache) == ([], 0)


def test_what_is_locked_is_not_evicted() -> None:
    cache = RadixCache(PAGE)
    cached(cache, "", [1, 1, 2, 2, 3, 3], 0)
    path = cache.match("", [1, 1, 2, 2], 2)
    cache.lock(path)
    assert cache.num_idle == 1
    assert cache.evict() == 2
    cache.unlock(path)
    assert [cache.evict(), cache.evict()] == [1, 0]


prompts = st.lists(st.integers(0, 1), min_size=PAGE, max_size=5 * PAGE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), prompts, st.integers(0, 3)), max_size=25))
def test_the_tree_equals_a_list_of_prefixes(calls: list[tuple[str, list[int], int]]) -> None:
    """The list holds each cached prefix; its end is the most recently used."""
    cache = RadixCache(PAGE)
    model: list[tuple[str, tuple[int, ...]]] = []
    pages: dict[tuple[str, tuple[int, ...]], int] = {}
    next_page = 0
    for salt, tokens, num_evicted in calls:
        num_pages = len(tokens) // PAGE
        prefixes = [(salt, tuple(tokens[: PAGE * (i + 1)])) for i in range(num_pages)]
        hits = [prefix for prefix in prefixes if prefix in model]
        path = cache.match(salt, tokens, num_pages)
        assert [node.page for node in path] == [pages[prefix] for prefix in hits]
        cache.lock(path)
        for prefix in prefixes[len(path) :]:
            pages[prefix] = next_page
            assert cache.extend(path, salt, tokens, next_page)
            next_page += 1
        check_cache(cache)
        cache.unlock(path)
        model = [prefix for prefix in model if prefix not in prefixes] + prefixes[::-1]
        for _ in range(min(num_evicted, len(model))):
            assert cache.evict() == pages[model.pop(0)]
        owned, num_locks = check_cache(cache)
        assert sorted(owned) == sorted(pages[prefix] for prefix in model)
        assert num_locks == 0
