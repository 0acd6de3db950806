"""The channel seam: messages between the API's side and the engine's side, in order.

A Unix socket with length-prefixed msgpack, which does not know what the messages mean. Tests put
queues in its place, under the same conformance suite.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from fathom.errors import EngineError

# A prompt of a million tokens takes 5 MB; this bounds what a wrong length can make us wait for.
MAX_FRAME_BYTES = 256 * 1024 * 1024
# A client that a debugger or a shell's Ctrl-Z holds for a while is not gone.
SEND_TIMEOUT_S = 300.0

_HEADER = struct.Struct(">I")
_READ_BYTES = 256 * 1024

Sent_contra = TypeVar("Sent_contra", contravariant=True)
Received_co = TypeVar("Received_co", covariant=True)
Sent = TypeVar("Sent")
Received = TypeVar("Received")


class ChannelClosed(Exception):
    """The other end is gone, or this end was closed: nothing will come or go any more."""


class Channel(Protocol[Sent_contra, Received_co]):
    """One end of a two-way connection. Any thread may send; one thread receives."""

    def send(self, message: Sent_contra) -> None:
        """Hand a message over, waiting at most SEND_TIMEOUT_S for room.

        Raises: ChannelClosed where an end is closed; EngineError where it cannot be written.
        """
        ...

    def receive(self, timeout_s: float) -> Received_co | None:
        """The next message, or None where none came within `timeout_s` (0 does not wait).

        Raises: ChannelClosed after the last message of a closed channel; EngineError where what
        came is not a message, after which the channel is closed.
        """
        ...

    def fileno(self) -> int:
        """A descriptor that polls readable when `receive(0)` has something to do."""
        ...

    def close(self) -> None:
        """End both directions; idempotent. The other end still receives what was sent."""
        ...


class SocketChannel(Generic[Sent, Received]):
    """A channel over a connected stream socket: four bytes of length, then msgpack.

    `receives` is the union of message types that this end accepts; anything else closes it.
    """

    def __init__(
        self, connection: socket.socket, receives: Any, *, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._max_frame_bytes = max_frame_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)
        self._buffer = bytearray()
        self._send_lock = threading.Lock()
        self._is_closed = False

    def send(self, message: Sent) -> None:
        try:
            payload = self._encoder.encode(message)
        except (OverflowError, ValueError, TypeError) as error:  # such as a number over 64 bits
            name = type(message).__name__
            raise EngineError(f"a {name} message cannot be sent", found=str(error)) from error
        if len(payload) > self._max_frame_bytes:
            raise EngineError(
                f"a {type(message).__name__} message is too large",
                found=f"{len(payload)} bytes",
                wanted=f"at most {self._max_frame_bytes}",
            )
        with self._send_lock:
            self._send_all(memoryview(_HEADER.pack(len(payload)) + payload))

    def _send_all(self, rest: memoryview) -> None:
        deadline_s = time.monotonic() + SEND_TIMEOUT_S
        while rest and not self._is_closed:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                if not _wait(self.fileno(), select.POLLOUT, deadline_s - time.monotonic()):
                    # Half a frame may be out, so that nothing after it could be understood.
                    self._hang_up()
            except OSError as error:
                raise ChannelClosed(str(error)) from error
        if self._is_closed:
            raise ChannelClosed("closed")

    def receive(self, timeout_s: float) -> Received | None:
        deadline_s = time.monotonic() + timeout_s
        while (frame := self._take_frame()) is None:
            chunk = self._read()
            if chunk is None:
                if not _wait(self.fileno(), select.POLLIN, deadline_s - time.monotonic()):
                    return None
            elif chunk:
                self._buffer += chunk
            else:
                self._hang_up()
                raise ChannelClosed("closed mid-message" if self._buffer else "closed")
        try:
            message: Received = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._refuse(f"{error}") from error
        return message

    def _read(self) -> bytes | None:
        """What is there: None for nothing yet, empty for the end."""
        if self._is_closed:
            raise ChannelClosed("closed")
        try:
            return self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""  # reset by the other end, or closed by another thread of this one

    def _take_frame(self) -> bytes | None:
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > self._max_frame_bytes:
            raise self._refuse(f"a frame of {size} bytes, over {self._max_frame_bytes}")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        frame = bytes(memoryview(self._buffer)[_HEADER.size : end])
        del self._buffer[:end]
        return frame

    def _refuse(self, found: str) -> EngineError:
        self._hang_up()
        return EngineError(
            "what came over the channel is not a message", found=found, wanted="a known message"
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._hang_up()
        with self._send_lock:  # a sender that waits has been woken, and lets go of the descriptor
            self._socket.close()

    def _hang_up(self) -> None:
        """End both directions. The descriptor stays ours until `close`, whoever watches it."""
        self._is_closed = True
        # Fails where the other end was first, and the second time.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _wait(descriptor: int, event: int, timeout_s: float) -> bool:
    """Whether a descriptor became ready (or failed, which the next call on it will say)."""
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
