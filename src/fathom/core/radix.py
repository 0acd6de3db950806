"""The prefix cache: a radix tree over whole pages, so that equal prefixes are computed once.

One node is one full page, found from its parent by the page's token ids. The first page's key
holds the request's cache salt as well, so that tenants with different salts never meet.

    root ── ("", 1 2 3 4) ── (5 6 7 8) ── (9 9 9 9)
        │                        └─────── (9 1 1 2)
        └── ("salt", 1 2 3 4)

Lifetime of a node. A sequence locks the path from the root to its last full page (`refs` + 1 on
each node) from the moment it uses or makes it until it lets go of its pages. A node that nobody
locks is idle and may be evicted. `refs` of a parent is never below that of a child, and paths are
unlocked from the deepest node up, so that an idle node's children are idle and came before it:
the oldest idle node is always a leaf. Eviction in LRU order is therefore one `popitem`, O(1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class Node:
    """One full page whose KV has been computed and committed. Compared by identity."""

    __slots__ = ("children", "key", "page", "parent", "refs")

    def __init__(self, key: Hashable, page: int, parent: Node | None) -> None:
        self.key, self.page, self.parent = key, page, parent
        self.children: dict[Hashable, Node] = {}
        self.refs = 0


class RadixCache:
    """Pages by the tokens that they and the pages before them hold."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._root = Node(None, -1, None)
        self._idle: OrderedDict[Node, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Pages that `evict` can give."""
        return len(self._idle)

    def match(self, salt: str, token_ids: Sequence[int], max_pages: int) -> list[Node]:
        """The longest cached path of at most `max_pages` pages that `token_ids` starts with.

        Nothing is locked yet. Cost: one hash of a page's ids for each page found.
        """
        path: list[Node] = []
        node = self._root
        while len(path) < max_pages:
            child = node.children.get(self._key(salt, token_ids, len(path)))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def lock(self, path: Sequence[Node]) -> None:
        """Keep the nodes of a path, given from the root down."""
        for node in path:
            if not node.refs:
                del self._idle[node]
            node.refs += 1

    def unlock(self, path: Sequence[Node]) -> None:
        """Let go of a path; what nobody else keeps becomes the most recently used idle part."""
        for node in reversed(path):
            node.refs -= 1
            if not node.refs:
                self._idle[node] = None

    def extend(self, path: list[Node], salt: str, token_ids: Sequence[int], page: int) -> bool:
        """Lengthen a locked `path` by the node of its next page, and lock that.

        Gives whether the tree took `page`. False: another sequence was first with equal tokens;
        its node joins the path, and `page` stays the caller's.
        """
        key = self._key(salt, token_ids, len(path))
        parent = path[-1] if path else self._root
        node = parent.children.get(key)
        is_new = node is None
        if node is None:
            node = parent.children[key] = Node(key, page, parent)
        elif not node.refs:
            del self._idle[node]
        node.refs += 1
        path.append(node)
        return is_new

    def evict(self) -> int:
        """The page of the idle node that was used least recently, now the caller's."""
        node, _ = self._idle.popitem(last=False)
        assert node.parent is not None
        assert not node.children, "the oldest idle node has children"
        del node.parent.children[node.key]
        return node.page

    def _key(self, salt: str, token_ids: Sequence[int], index: int) -> Hashable:
        start = index * self._page_size
        ids = tuple(token_ids[start : start + self._page_size])
        return ids if index else (salt, ids)
