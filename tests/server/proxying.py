"""`fathom proxy` in a process of its own, and a small upstream that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.engine import UpstreamEngine
from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.test_real_engine import WAIT_S, Server


@contextmanager
def proxying(upstream: str, *flags: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fathom.cli", "proxy", "--port", "0"),
            *("--upstream", upstream, "--log-level", "error", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("fathom is ready at "), process.communicate(timeout=WAIT_S)[1]
        yield Server(process, first.split()[-1])
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


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
    `is_slow` answers its first question with 503.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    hangs: bool = False
    owner: str = "vllm"
    models_status: int = 200
    is_slow: bool = False

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
            self._whole(writer, status, {}, json.dumps({"data": [card]}).encode())
            return
        length = next(
            int(line.partition(":")[2])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length")
        )
        self.bodies.append(json.loads(await reader.readexactly(length)))
        if self.status != 200:
            self._whole(writer, self.status, self.headers, b"".join(self.pieces))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in self.pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
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
