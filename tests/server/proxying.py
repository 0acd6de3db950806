"""The proxy on a loopback port, and a small upstream that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.engine import UpstreamEngine
from fathom.server.config import ServerConfig
from fathom.weights.embedded import embedded_path
from tests.server.live_server import WAIT_S, LiveServer
from tests.server.scripted_engine import call_text

FILES = str(embedded_path())
ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30? ☃"}]
CALLS = call_text(("add", '{"a": 1, "b": "☃"}'))
FORM = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}
CHAT: dict[str, Any] = {"messages": ASK, "temperature": 0}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
]


class LiveProxy(LiveServer):
    """The same server, in front of an upstream; `settings` are UpstreamConfig's."""

    def __init__(
        self, *, key: str = "", config: ServerConfig | None = None, **settings: Any
    ) -> None:
        super().__init__(config)
        self._settings, self._key = UpstreamConfig(**settings), key or None

    async def make_engine(self) -> Any:
        engine = await UpstreamEngine.start(self._settings, self._key, self.state.observer)
        await engine.ready()
        return engine

    async def _serve(self) -> None:
        await super()._serve()
        await self.engine.close()


@dataclass
class FakeUpstream:
    """Answers with `status`, or with the bytes of `pieces`, each a write of its own.

    `hangs` keeps the connection open after them; else it is closed. `bodies` are what was asked.
    `hints` come before the response, as 103 Early Hints may.
    `is_slow` answers its first question with 503. `settings`: an SGLang's, in its words.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    hangs: bool = False
    hints: bytes = b""
    owner: str = "vllm"
    models_status: int = 200
    is_slow: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.was_left = threading.Event()
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[FakeUpstream]:
        up, loop = threading.Event(), asyncio.new_event_loop()
        stop = asyncio.Event()

        async def main() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            up.set()
            await stop.wait()
            server.close()
            serving = asyncio.all_tasks() - {asyncio.current_task()}
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

        thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
        thread.start()
        assert up.wait(WAIT_S)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(WAIT_S)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.heads.append(head)
        if head.startswith("GET "):
            card = {"id": "fake", "owned_by": self.owner, "max_model_len": 512}
            status = 503 if self.is_slow and len(self.heads) == 1 else self.models_status
            self._whole(writer, status, {}, json.dumps({"data": [card], **self.settings}).encode())
            return
        length = next(
            int(line.partition(":")[2])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length")
        )
        self.bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(self.hints)
        if self.status != 200:
            self._whole(writer, self.status, self.headers, b"".join(self.pieces))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in self.pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if self.hangs:
            await reader.read()
            self.was_left.set()
        raise ConnectionResetError  # no last chunk: whoever needs one sees a broken stream

    def _whole(
        self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body)


def sse(*events: Any) -> bytes:
    """Events as a server writes them, and the end of the stream."""
    told = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return told + b"data: [DONE]\n\n"


def told(raw: Any) -> Any:
    """What an answer says, less what differs between two answers to the same question."""
    if isinstance(raw, list):
        return [told(one) for one in raw]
    if not isinstance(raw, dict):
        return raw
    unique = ("id", "call_id", "item_id", "created", "created_at", "completed_at", "e2e_latency")
    return {
        name: told(value)
        for name, value in raw.items()
        if name not in unique and "duration" not in name
    }


def events(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream."""
    text = httpx.post(url + path, json={**body, "stream": True}, timeout=WAIT_S).text
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    return [told(json.loads(line)) for line in lines if line.startswith("{")]


def whole(url: str, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(url + path, json={**body, "stream": False}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return told(answer.json())
