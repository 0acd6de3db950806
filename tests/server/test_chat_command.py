"""Compares `fathom chat` in a process of its own with what a scripted server was asked and says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fathom.commands.client import Client
from fathom.errors import ConfigError, FathomError
from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer

WAIT_S = 20.0
KEY = "sk-chat"


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with LiveServer(ServerConfig(port=0, api_key=(KEY,))) as live:
        yield live


def chat(server: LiveServer, *more: str) -> subprocess.Popen[str]:
    # A process in the background of a script inherits that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fathom.cli",
                "chat",
                "--url",
                server.url,
                "--api-key",
                KEY,
                *more,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def said(server: LiveServer) -> list[str]:
    decode = server.engine.tokenizer.decode
    return [decode(request.prompt_ids) for request in server.engine.requests]


def test_a_conversation(server: LiveServer) -> None:
    server.engine.answer = "Hm</think>Fine \x1b[2J thanks"
    process = chat(server, "--system", "Be nice", "--temperature", "0")
    script = "/think on\nHow are you?\nAnd now?\n/reset\n/system\nAlone\n/what\n/help\n/exit\nno\n"
    out, err = process.communicate(script, timeout=WAIT_S)
    assert process.returncode == 0, err
    assert out == "Hm\n\nFine [2J thanks\n" * 3
    assert "/reset" in err
    first, second, third = said(server)
    assert "Be nice" in first
    assert first.endswith("<think>")
    assert "How are you?" in second
    assert "thanks" in second
    assert "Hm" not in second
    assert "Be nice" not in third
    assert "How are you?" not in third
    assert all(request.sampling.temperature == 0 for request in server.engine.requests)


def test_ctrl_c_stops_the_answer_and_not_the_program(server: LiveServer) -> None:
    server.engine.answer, server.engine.step_s = "word " * 5000, 0.01
    process = chat(server)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Talk\n")
    process.stdin.flush()
    assert process.stdout.read(1) == "w"
    process.send_signal(signal.SIGINT)
    server.until(lambda: not server.engine.running)
    assert server.engine.num_cancelled == 1
    server.call(lambda: setattr(server.engine, "answer", "Still here"))
    out, _ = process.communicate("Are you there?\n", timeout=WAIT_S)
    assert process.returncode == 0
    assert out.endswith("Still here\n")


def test_errors_of_the_server_are_told(server: LiveServer) -> None:
    process = chat(server, "--model", "other")
    out, err = process.communicate("Hello\n", timeout=WAIT_S)
    assert process.returncode == 1, "a script must know"
    assert out == ""
    assert "does not exist" in err
    assert err.count("found:") == 0, "once is enough"


def test_wrong_key_and_nobody_there(server: LiveServer) -> None:
    with pytest.raises(FathomError, match="key"):
        Client(server.url, "wrong").get("/v1/models")
    with pytest.raises(FathomError, match="fathom serve"):
        Client("http://127.0.0.1:9", None).get("/v1/models")
    with pytest.raises(ConfigError, match="--url"):
        Client("ftp://x", None)


def test_urls_as_other_clients_take_them(server: LiveServer) -> None:
    for url in (server.url, f"{server.url}/", f"{server.url}/v1", server.url.partition("//")[2]):
        assert Client(url, KEY).get("/v1/models")["data"][0]["id"] == "scripted"


def test_a_stream_that_breaks_off(server: LiveServer) -> None:
    server.engine.fails_after = 3
    events = Client(server.url, KEY).stream(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "stream": True}
    )
    with pytest.raises(FathomError, match="told to die"):
        list(events)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://127.0.0.1:abc", "http://[::1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        Client(url, None)
