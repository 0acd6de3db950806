"""What the executor and its rank processes say to each other, and how it is framed.

A frame is eight bytes of length and a msgpack message. The executor sends one `RankStart`, then
`StepPlan`s; a rank answers with `RankReady`, then, the first rank only, with a `RankResult` a plan;
or with one `RankFailed`, and exits. A closed connection ends a rank. After a plan with masks comes
a frame of their bits, in the order of the entries, so that they are computed while the ranks run
the step; a rank reads it when it samples.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from fathom.core.types import Mask, StepPlan, StepResult
from fathom.errors import EngineError
from fathom.spec.plan import DeploymentPlan

_LENGTH = struct.Struct(">Q")
_MAX_FRAME_BYTES = 1 << 30


class RankStart(msgspec.Struct, frozen=True):
    """What to run and where the ranks meet: `store_path`, a file that all of them open."""

    plan: DeploymentPlan
    store_path: str


class RankReady(msgspec.Struct, frozen=True, tag=True):
    """The rank is loaded and in the group."""


class RankResult(msgspec.Struct, frozen=True, tag=True):
    """A step is done."""

    result: StepResult


class RankFailed(msgspec.Struct, frozen=True, tag=True):
    """The rank cannot go on; it exits after this. `kind` is the class of the error, and the rest
    its parts, as in `FathomError`."""

    kind: str
    what: str
    found: str = ""
    wanted: str = ""
    fix: str = ""


RankMessage = RankReady | RankResult | RankFailed

_FOLLOWS = "follows"  # what stands for a mask in a plan's frame
_encoder = msgspec.msgpack.Encoder(enc_hook=lambda mask: _FOLLOWS)
_masks_decoder = msgspec.msgpack.Decoder(list[bytes])
_start_decoder = msgspec.msgpack.Decoder(RankStart)
_message_decoder: msgspec.msgpack.Decoder[RankMessage] = msgspec.msgpack.Decoder(
    RankReady | RankResult | RankFailed
)


def encode(message: Any) -> bytes:
    """A message as the body of a frame."""
    return _encoder.encode(message)


def decode_start(body: bytes) -> RankStart:
    """The first message to a rank."""
    return _start_decoder.decode(body)


def encode_masks(plan: StepPlan) -> bytes | None:
    """The frame that follows a plan's; None where it has no masks. Computes them."""
    masks = [entry.mask.read() for entry in plan.entries if entry.mask is not None]
    return encode(masks) if masks else None


class FollowingMasks:
    """The masks of one plan, received when the first of them is read."""

    def __init__(self, receive: Callable[[], bytes | None]) -> None:
        self._receive = receive
        self._bits: list[bytes] | None = None
        self.count = 0

    def open(self, kind: type, value: object) -> _FollowingMask:
        """The mask that stands at the next place of the plan: a hook for its decoder."""
        if kind is not Mask or value != _FOLLOWS:
            raise msgspec.ValidationError(f"{value!r} is no {kind.__name__}")
        self.count += 1
        return _FollowingMask(self, self.count - 1)

    def bits(self) -> list[bytes]:
        """All of them. Raises: EngineError where the other end is gone."""
        if self._bits is None:
            body = self._receive()
            if body is None:
                raise EngineError("the masks of a step", found="a closed connection")
            self._bits = _masks_decoder.decode(body)
        return self._bits


class _FollowingMask:
    def __init__(self, masks: FollowingMasks, place: int) -> None:
        self._masks, self._place = masks, place

    def read(self) -> bytes:
        """The rows, which may have to come first."""
        return self._masks.bits()[self._place]


def decode_plan(body: bytes, masks: FollowingMasks) -> StepPlan:
    """Every later message to a rank, with `masks` for those of its entries."""
    return msgspec.msgpack.decode(body, type=StepPlan, dec_hook=masks.open)


def decode_message(body: bytes) -> RankMessage:
    """A message from a rank."""
    return _message_decoder.decode(body)


class FramedSocket:
    """Whole messages over a stream socket; one thread sends, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, body: bytes) -> None:
        """Send one frame. Raises: OSError where the other end is gone."""
        self._socket.sendall(_LENGTH.pack(len(body)))
        self._socket.sendall(body)

    def receive(self) -> bytes | None:
        """The next frame; None where the other end has closed, or is gone."""
        header = self._exactly(_LENGTH.size)
        if header is None:
            return None
        (length,) = _LENGTH.unpack(header)
        if length > _MAX_FRAME_BYTES:
            raise EngineError(
                "a frame between ranks",
                found=f"{length} bytes",
                wanted=f"at most {_MAX_FRAME_BYTES}",
            )
        return self._exactly(length)

    def close(self) -> None:
        """Close; a thread that waits in `receive` of this socket comes back with None."""
        with suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes | None:
        buffer = bytearray(size)
        view, filled = memoryview(buffer), 0
        while filled < size:
            try:
                count = self._socket.recv_into(view[filled:])
            except OSError:
                return None
            if count == 0:
                return None
            filled += count
        return bytes(buffer)
