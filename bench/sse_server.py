"""A server without a model: streams of OpenAI's API with known delays, for measuring the client.

    python bench/sse_server.py [--first-s S] [--gap-s S]

It prints its port. Every event carries the time at which it was due and the time at which it was
written, on the system's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n"
)


@dataclass
class Script:
    """What the server does. `first_s`, `gap_s`: seconds to the first token and between tokens.

    `refuse_first` requests get `status`; a stream is cut after `cut_after` tokens; `hold`, while it
    is not set, keeps every answer from beginning. `events` go out as they stand where given;
    `pieces` are texts and token ids that tokens say in turn, in place of their times.
    """

    first_s: float = 0.0
    gap_s: float = 0.0
    refuse_first: int = 0
    status: int = 503
    cut_after: int | None = None
    has_length: bool = True
    hold: asyncio.Event | None = None
    events: list[bytes] | None = None
    pieces: list[tuple[str, int]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    written_s: list[list[float]] = field(default_factory=list)
    open: set[asyncio.Transport] = field(default_factory=set)
    num_connections: int = 0
    num_out: int = 0
    most_out: int = 0


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self, script: Script) -> None:
        self._script, self._got = script, b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._script.num_connections += 1
        self._script.open.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._script.open.discard(self._transport)
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, gap, rest = self._got.partition(b"\r\n\r\n")
        if not gap:
            return
        request, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._got = rest[length:]
        if request.startswith("GET"):
            self._whole(200, {"data": [{"id": "scripted"}]})
            return
        self._script.headers.append(headers)
        self._answering = asyncio.create_task(self._answer(json.loads(rest[:length])))

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(raw)}\r\n\r\n"
        self._transport.write(head.encode() + raw)

    async def _answer(self, body: dict[str, Any]) -> None:
        script = self._script
        script.bodies.append(body)
        if script.refuse_first > 0:
            script.refuse_first -= 1
            self._whole(script.status, {"error": {"message": f"told to say {script.status}"}})
            return
        script.num_out += 1
        script.most_out = max(script.most_out, script.num_out)
        try:
            await self._stream(body)
        finally:
            script.num_out -= 1

    async def _stream(self, body: dict[str, Any]) -> None:
        script, began_s = self._script, time.perf_counter()
        if script.hold is not None:
            await script.hold.wait()
            began_s = time.perf_counter()
        head = _HEAD if script.has_length else _HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")
        self._transport.write(head)
        written_s: list[float] = []
        script.written_s.append(written_s)
        if script.events is not None:
            for event in script.events:
                self._write(event)
        else:
            count = body.get("max_tokens", body.get("max_completion_tokens", 1))
            for position in range(count):
                due_s = began_s + script.first_s + position * script.gap_s
                while (rest_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(rest_s)
                if position == script.cut_after:
                    self._transport.close()
                    return
                written_s.append(time.perf_counter())
                said = (f"{due_s!r} {written_s[-1]!r}\n", 0)
                if script.pieces:
                    said = script.pieces[position % len(script.pieces)]
                self._write(_token(body, *said, is_last=position == count - 1))
            usage = {"prompt_tokens": 7, "completion_tokens": count}
            self._write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
            self._write(b"data: [DONE]\n\n")
        if script.has_length:
            self._transport.write(b"0\r\n\r\n")
        else:
            self._transport.close()

    def _write(self, event: bytes) -> None:
        self._transport.write(
            b"%x\r\n%s\r\n" % (len(event), event) if self._script.has_length else event
        )


def _token(body: dict[str, Any], text: str, token_id: int, *, is_last: bool) -> bytes:
    reason = "length" if is_last else None
    said: dict[str, Any] = {"text": text}
    if "messages" in body:
        said = {"delta": {"content": text}}
    elif body.get("return_token_ids"):
        said["token_ids"] = [token_id]
    event = {"object": "chunk", "choices": [{"index": 0, **said, "finish_reason": reason}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def start(script: Script) -> tuple[asyncio.Server, int]:
    """The server on a free port of the loopback, and that port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(script), "127.0.0.1", 0, backlog=4096)
    return server, server.sockets[0].getsockname()[1]


async def stop(server: asyncio.Server, script: Script) -> None:
    """End it and every connection."""
    server.close()
    for transport in script.open:
        transport.abort()
    while script.open:
        await asyncio.sleep(0)


async def _serve(script: Script) -> None:
    server, port = await start(script)
    print(port, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-s", type=float, default=0.1)
    parser.add_argument("--gap-s", type=float, default=1 / 30)
    options = parser.parse_args()
    uvloop.run(_serve(Script(first_s=options.first_s, gap_s=options.gap_s)))
