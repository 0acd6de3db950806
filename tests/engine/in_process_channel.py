"""A channel between two threads of one process; messages are handed over as they are."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import Any, Generic, TypeVar

from fathom.engine.channel import ChannelClosed

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class _Mailbox(Generic[Received]):
    """One direction of an in-process channel. The eventfd is readable while something waits."""

    def __init__(self) -> None:
        self._items: deque[Received] = deque()
        self._lock = threading.Lock()
        self._is_closed = False
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)

    def put(self, item: Received) -> None:
        with self._lock:
            if self._is_closed:
                raise ChannelClosed("closed")
            self._items.append(item)
            os.eventfd_write(self.fd, 1)

    def get(self) -> Received | None:
        with self._lock:
            if not self._items:
                if self._is_closed:
                    raise ChannelClosed("closed")
                return None
            item = self._items.popleft()
            if not self._items and not self._is_closed:
                os.eventfd_read(self.fd)
            return item

    def close(self, *, drop: bool) -> None:
        with self._lock:
            self._is_closed = True
            if drop:
                self._items.clear()
            os.eventfd_write(self.fd, 1)


class InProcessChannel(Generic[Sent, Received]):
    """A channel between two threads; messages are handed over as they are."""

    def __init__(self, outbox: _Mailbox[Sent], inbox: _Mailbox[Received]) -> None:
        self._outbox, self._inbox = outbox, inbox

    def send(self, message: Sent) -> None:
        self._outbox.put(message)

    def receive(self, timeout_s: float) -> Received | None:
        message = self._inbox.get()
        if message is None and timeout_s > 0 and self._waits(timeout_s):
            message = self._inbox.get()
        return message

    def _waits(self, timeout_s: float) -> bool:
        return bool(select.select([self._inbox.fd], [], [], timeout_s)[0])

    def fileno(self) -> int:
        return self._inbox.fd

    def close(self) -> None:
        self._outbox.close(drop=False)
        self._inbox.close(drop=True)


def in_process_pair() -> tuple[InProcessChannel[Any, Any], InProcessChannel[Any, Any]]:
    """The two ends of a channel within this process."""
    there: _Mailbox[Any] = _Mailbox()
    back: _Mailbox[Any] = _Mailbox()
    return InProcessChannel(there, back), InProcessChannel(back, there)
