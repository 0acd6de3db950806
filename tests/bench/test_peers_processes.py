"""Compares the peers benchmark's drivers and client with scripted ends of the other side."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from bench.peers.client import Target, burst
from bench.peers.prepare import Cache
from bench.peers.protocol import ROOT, Driver, PeerError, run

DRIVER = """
import time
from bench.peers.protocol import answer_calls

class Engine:
    def facts(self):
        print("an engine's own words")
        return {"versions": {}}
    def echo(self, value):
        return value
    def fail(self):
        raise ValueError("no such thing")
    def sleep(self):
        time.sleep(60)

answer_calls(Engine)
"""


def _driver(log: Path, program: str = DRIVER) -> Driver:
    command = [sys.executable, "-c", program]
    return Driver(command, log, environment={"PYTHONPATH": str(ROOT)}, start_s=60)


def test_a_driver_answers_fails_and_answers_again(tmp_path: Path) -> None:
    driver = _driver(tmp_path / "log")
    try:
        assert driver.facts == {"versions": {}}
        assert driver.call("echo", 30, value=[1, "ß"]) == [1, "ß"]
        with pytest.raises(PeerError, match="ValueError: no such thing"):
            driver.call("fail", 30)
        assert driver.call("echo", 30, value=2) == 2
        assert "an engine's own words" in (tmp_path / "log").read_text()
    finally:
        driver.close()


def test_a_driver_that_is_silent_is_ended(tmp_path: Path) -> None:
    driver = _driver(tmp_path / "log")
    with pytest.raises(PeerError, match="before the deadline"):
        driver.call("sleep", 0.2)
    assert driver.process.poll() is not None


def test_a_driver_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no engine here"):
        _driver(tmp_path / "log", "raise SystemExit('no engine here')")
    with pytest.raises(PeerError, match="could not be started"):
        Driver([str(tmp_path / "python")], tmp_path / "log", environment={}, start_s=60)


def test_a_step_is_done_once_and_its_failure_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, tmp_path / "model")
    done: list[str] = []

    def fail() -> None:
        run(
            [sys.executable, "-c", "raise SystemExit('bad wheel')"],
            deadline_s=60,
            log=cache.log("x"),
        )

    for _ in range(2):
        assert cache.step("good", "1", lambda: done.append("good"))
    assert cache.step("good", "2", lambda: done.append("again"))
    assert not cache.step("bad", "1", fail)
    assert not cache.step("later", "1", lambda: done.append("later"), "bad")
    assert done == ["good", "again"]
    assert "bad wheel" in cache.errors["bad"]
    assert cache.errors["later"] == cache.errors["bad"]


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A stream of three tokens, in chunks that end where no event does."""
    await reader.readuntil(b"\r\n\r\n")
    events = [{"choices": [{"text": text}]} for text in ("a", "", "c")]
    events.append({"choices": [], "usage": {"completion_tokens": 3}})
    body = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in events)
    body += b"data: [DONE]\n\n"
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(body), 7):
        piece = body[start : start + 7]
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    writer.close()


def _burst(new_tokens: int) -> dict[str, float]:
    async def ask() -> dict[str, float]:
        server = await asyncio.start_server(_serve, "127.0.0.1", 0)
        async with server:
            target = Target(server.sockets[0].getsockname()[1], "model")
            requests = [([1, 2], new_tokens)] * 2
            return await asyncio.to_thread(burst, target, requests, 30)

    return asyncio.run(ask())


def test_client_counts_by_the_servers_usage() -> None:
    told = _burst(3)
    assert told["output_tokens"] == 6
    assert told["output_tokens_per_s"] == pytest.approx(6 / told["wall_s"], rel=0.1)


def test_client_refuses_fewer_tokens_than_asked_for() -> None:
    with pytest.raises(PeerError, match="3 tokens came, 4 were asked for"):
        _burst(4)
