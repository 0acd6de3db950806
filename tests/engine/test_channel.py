"""Compares both channel implementations with a plain list: what goes in comes out, in order."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.types import CoreStats, Request, SamplingParams, TokenEvent, TokenLogprobs
from fathom.engine import sockets
from fathom.engine.channel import ChannelClosed, SocketChannel
from fathom.engine.messages import (
    Add,
    Cancel,
    Died,
    ErrorParts,
    Events,
    FromEngine,
    Heartbeat,
    Progress,
    Refused,
    Shutdown,
    ToEngine,
    pack_error,
    unpack_error,
)
from fathom.errors import ContextLengthError, EngineError, FathomError, OverloadedError
from tests.engine.in_process_channel import in_process_pair

Pair = tuple[Any, Any]
ANY = SamplingParams()


def socket_pair(max_frame_bytes: int = 1 << 26) -> Pair:
    client, engine = socket.socketpair()
    return (
        SocketChannel(client, FromEngine, max_frame_bytes=max_frame_bytes),
        SocketChannel(engine, ToEngine, max_frame_bytes=max_frame_bytes),
    )


IMPLEMENTATIONS: list[Callable[[], Pair]] = [in_process_pair, socket_pair]
both = pytest.mark.parametrize("make", IMPLEMENTATIONS)


@contextmanager
def opened(make: Callable[[], Pair]) -> Iterator[Pair]:
    ends = make()
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


ids = st.text(max_size=20)
token_ids = st.lists(st.integers(0, 2**31), max_size=20).map(tuple)
sampling = st.builds(
    SamplingParams,
    n=st.integers(1, 8),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    logit_bias=st.dictionaries(st.integers(0, 1000), st.floats(-100, 100), max_size=3),
)
requests = st.builds(
    Request, id=ids, prompt_ids=token_ids, sampling=sampling, seed=st.integers(0, 2**64 - 1)
)
logprobs = st.builds(
    TokenLogprobs,
    st.integers(0, 9),
    st.floats(allow_nan=False),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 9), st.floats(allow_nan=False)), max_size=2).map(tuple),
)
rows = st.lists(logprobs, max_size=2).map(tuple)
reasons = st.sampled_from([None, "stop", "length", "abort", "error"])
events = st.tuples(ids, token_ids, rows, rows, reasons).map(lambda parts: TokenEvent(*parts))
errors = st.builds(ErrorParts, kind=ids, what=ids, param=st.none() | ids)
to_engine = st.one_of(
    st.builds(Add, st.lists(requests, max_size=3).map(tuple)),
    st.builds(Cancel, st.lists(ids, max_size=3).map(tuple)),
    st.just(Shutdown()),
)
from_engine = st.one_of(
    st.builds(Progress, ids, ids),
    st.builds(Events, st.lists(events, max_size=3).map(tuple), st.just(CoreStats(running=3))),
    st.builds(Refused, st.lists(ids, max_size=3).map(tuple), errors),
    st.builds(Heartbeat, st.floats(0, 100)),
    st.builds(Died, errors),
)


def drain(channel: Any, count: int) -> list[Any]:
    return [channel.receive(5.0) for _ in range(count)]


@both
@settings(max_examples=40, deadline=None)
@given(out=st.lists(to_engine, max_size=5), back=st.lists(from_engine, max_size=5))
def test_messages_round_trip_in_order(
    make: Callable[[], Pair], out: list[Any], back: list[Any]
) -> None:
    with opened(make) as (client, engine):
        for message in out:
            client.send(message)
        for message in back:
            engine.send(message)
        assert drain(engine, len(out)) == out
        assert drain(client, len(back)) == back
        assert client.receive(0) is None
        assert engine.receive(0) is None


@both
def test_large_messages_cross_while_both_ends_talk(make: Callable[[], Pair]) -> None:
    with opened(make) as (client, engine):
        prompt = tuple(range(300_000))
        large = Add((Request(id="r", prompt_ids=prompt, sampling=SamplingParams(), seed=1),))
        sender = threading.Thread(target=lambda: [client.send(large) for _ in range(3)])
        sender.start()
        assert drain(engine, 3) == [large] * 3
        sender.join(5)


@both
def test_many_threads_may_send(make: Callable[[], Pair]) -> None:
    with opened(make) as (client, engine):

        def send(name: str) -> None:
            for index in range(50):
                client.send(Cancel((name, str(index))))

        senders = [threading.Thread(target=send, args=(name,)) for name in "abcd"]
        for sender in senders:
            sender.start()
        got = drain(engine, 200)
        for sender in senders:
            sender.join(5)
        for name in "abcd":
            assert [m.ids[1] for m in got if m.ids[0] == name] == [str(i) for i in range(50)]


@both
def test_close_delivers_what_was_sent_and_then_ends(make: Callable[[], Pair]) -> None:
    with opened(make) as (client, engine):
        client.send(Shutdown())
        client.close()
        client.close()
        assert engine.receive(1.0) == Shutdown()
        for _ in range(2):
            with pytest.raises(ChannelClosed):
                engine.receive(1.0)
        with pytest.raises(ChannelClosed):
            client.send(Shutdown())
        with pytest.raises(ChannelClosed):
            engine.send(Heartbeat())
        with pytest.raises(ChannelClosed):
            client.receive(0)


@both
def test_waiting_ends_by_deadline_by_message_and_by_close(make: Callable[[], Pair]) -> None:
    with opened(make) as (client, engine):
        assert engine.receive(0.01) is None
        threading.Timer(0.02, client.send, (Shutdown(),)).start()
        assert engine.receive(5.0) == Shutdown()
        threading.Timer(0.02, client.close).start()
        with pytest.raises(ChannelClosed):
            engine.receive(5.0)


def raw_pair(max_frame_bytes: int = 1 << 20) -> Pair:
    raw, engine = socket.socketpair()
    return raw, SocketChannel(engine, ToEngine, max_frame_bytes=max_frame_bytes)


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


class _Evil:
    def __reduce__(self) -> Any:
        return os.abort, ()


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=200))
def test_garbage_gives_an_error_and_never_a_message(payload: bytes) -> None:
    try:
        known = msgspec.msgpack.decode(payload, type=ToEngine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        known = None
    with opened(raw_pair) as (raw, engine):
        raw.sendall(frame(payload))
        if known is None:
            with pytest.raises(EngineError, match="not a message"):
                engine.receive(1.0)
            with pytest.raises(ChannelClosed):
                engine.receive(0)
        else:
            assert engine.receive(1.0) == known


def test_pickle_is_not_loaded() -> None:
    with opened(raw_pair) as (raw, engine):
        raw.sendall(frame(pickle.dumps(_Evil())))
        with pytest.raises(EngineError, match="not a message"):
            engine.receive(1.0)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with opened(raw_pair) as (raw, engine):
        raw.sendall(frame(msgspec.msgpack.encode(Heartbeat())))
        with pytest.raises(EngineError, match="not a message"):
            engine.receive(1.0)


def test_frames_over_the_limit_are_refused_at_both_ends() -> None:
    with opened(lambda: raw_pair(max_frame_bytes=100)) as (raw, engine):
        raw.sendall(struct.pack(">I", 101))
        with pytest.raises(EngineError, match="over 100"):
            engine.receive(1.0)
    with opened(lambda: socket_pair(max_frame_bytes=100)) as (client, engine):
        with pytest.raises(EngineError, match="too large"):
            client.send(Cancel(("x" * 200,)))
        client.send(Shutdown())  # the channel itself is unharmed
        assert engine.receive(1.0) == Shutdown()


def test_what_msgpack_cannot_hold_is_an_error_of_the_sender() -> None:
    with opened(socket_pair) as (client, engine):
        with pytest.raises(EngineError, match="Add message cannot be sent"):
            client.send(Add((Request(id="a", prompt_ids=(2**64,), sampling=ANY, seed=0),)))
        client.send(Shutdown())
        assert engine.receive(1.0) == Shutdown()


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_an_end_in_the_middle_of_a_frame_is_a_close(cut: int) -> None:
    with opened(raw_pair) as (raw, engine):
        whole = frame(msgspec.msgpack.encode(Cancel(("some", "ids"))))
        raw.sendall(whole + whole[:cut])
        assert engine.receive(1.0) == Cancel(("some", "ids"))
        assert engine.receive(0) is None
        raw.close()
        with pytest.raises(ChannelClosed, match="mid-message"):
            engine.receive(1.0)


def test_listener_is_private_and_checks_its_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = sockets.PrivateListener()
    directory = os.path.dirname(listener.path)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    connection = sockets.connect(listener.path, 5.0)
    accepted, _ = listener.socket.accept()
    sockets.check_peer(accepted)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(EngineError, match="another user"):
        sockets.check_peer(accepted)
    assert accepted.fileno() == -1
    connection.close()
    listener.close()
    listener.close()
    assert not os.path.exists(directory)


@pytest.mark.parametrize(
    "error",
    [
        FathomError("a", found="b", wanted="c", fix="d"),
        ContextLengthError("too long", param="messages", found="9", wanted="8"),
        OverloadedError("full", retry_after_s=7, fix="wait"),
    ],
)
def test_errors_keep_their_kind_and_parts(error: FathomError) -> None:
    back = unpack_error(pack_error(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("what", "found", "wanted", "fix", "code", "param", "retry_after_s"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_foreign_errors_become_engine_errors() -> None:
    back = unpack_error(pack_error(ZeroDivisionError("oh")))
    assert type(back) is EngineError
    assert back.what == "ZeroDivisionError: oh"
