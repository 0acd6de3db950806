"""A cache with two bounds: how many things it holds, and how large they are together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Recent(Generic[KeyT, ValueT]):
    """What was used last, as far as `max_count` and `max_size` go; the very last in any case."""

    def __init__(self, max_count: int, max_size: int) -> None:
        self._max_count, self._max_size = max_count, max_size
        self._held: OrderedDict[KeyT, tuple[ValueT, int]] = OrderedDict()
        self._size = 0

    def get(self, key: KeyT) -> ValueT | None:
        """The value, None where there is none, or no more."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: KeyT, value: ValueT, size: int) -> None:
        """Hold a value, and let go of those that were used longest ago and are too much now."""
        self.drop(key)
        self._held[key] = value, size
        self._size += size
        while len(self._held) > 1 and (
            len(self._held) > self._max_count or self._size > self._max_size
        ):
            self.drop(next(iter(self._held)))

    def drop(self, key: KeyT) -> None:
        """Forget a value, if it is there."""
        _, size = self._held.pop(key, (None, 0))
        self._size -= size
