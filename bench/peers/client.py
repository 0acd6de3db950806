"""A load client for /v1/completions: streams, token-id prompts, greedy. Nothing but asyncio.

Times are taken as the bytes arrive, before any parsing of JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers.cases import HttpRequest
from bench.peers.protocol import PeerError


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream: when it was asked, when text came, when it ended (s, one clock), its tokens."""

    asked_s: float
    arrivals_s: tuple[float, ...]
    ended_s: float
    num_tokens: int

    @property
    def first_s(self) -> float:
        """Seconds to the first text; to the end where no token was text."""
        return (self.arrivals_s[0] if self.arrivals_s else self.ended_s) - self.asked_s


@dataclass(frozen=True, slots=True)
class Target:
    """A server on this machine: its port, and the model's name in requests."""

    port: int
    model: str


async def complete(target: Target, ids: Sequence[int], new_tokens: int) -> Answer:
    """Stream one completion of exactly `new_tokens`. Raises: PeerError, OSError."""
    body = {
        "model": target.model,
        "prompt": list(ids),
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    asked_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 22)
    try:
        writer.write(head.encode() + raw)
        events = [event async for event in _events(reader)]
    finally:
        writer.close()
    ended_s = time.perf_counter()
    arrivals, num_tokens = _told(events)
    if num_tokens != new_tokens:
        raise PeerError(f"{num_tokens} tokens came, {new_tokens} were asked for")
    return Answer(asked_s, arrivals, ended_s, num_tokens)


def _told(events: Sequence[tuple[float, bytes]]) -> tuple[tuple[float, ...], int]:
    """When choices with text came, and the number of tokens by the server's own count."""
    arrivals, num_tokens = [], 0
    for at_s, data in events:
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise PeerError(f"the server streamed an error: {str(event['error'])[:200]}")
        if any(choice.get("text") for choice in event.get("choices") or ()):
            arrivals.append(at_s)
        if event.get("usage"):
            num_tokens = event["usage"]["completion_tokens"]
    return tuple(arrivals), num_tokens


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    """The data of server-sent events but the last, [DONE], with the time of arrival."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if " 200" not in head.partition("\r\n")[0]:
        text = (await reader.read()).decode(errors="replace")
        raise PeerError(f"{head.partition(chr(13))[0]}: {' '.join(text.split())[:200]}")
    is_chunked = "transfer-encoding: chunked" in head
    unread = b""
    async for piece in _pieces(reader, is_chunked):
        at_s = time.perf_counter()
        lines = (unread + piece).split(b"\n")
        unread = lines.pop()
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield at_s, data


async def _pieces(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    while not is_chunked:
        piece = await reader.read(1 << 16)
        if not piece:
            return
        yield piece
    while size := int((await reader.readline()).partition(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


def burst(target: Target, requests: Sequence[HttpRequest], deadline_s: float) -> dict[str, Any]:
    """Send all at once, wait for all. Raises: PeerError, also after the deadline."""

    async def run() -> list[Answer]:
        asked = (complete(target, ids, new_tokens) for ids, new_tokens in requests)
        return list(await asyncio.wait_for(asyncio.gather(*asked), deadline_s))

    try:
        answers = asyncio.run(run())
    except TimeoutError:
        raise PeerError(f"{len(requests)} requests took over {deadline_s:.0f} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise PeerError(f"the connection broke: {error}") from error
    return summary(answers)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Wall time, tokens a second, time to the first token, time between arrivals."""
    wall_s = max(one.ended_s for one in answers) - min(one.asked_s for one in answers)
    num_tokens = sum(one.num_tokens for one in answers)
    firsts_s = [one.first_s for one in answers]
    gaps_s = [
        late - early
        for one in answers
        for early, late in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)
    ]
    return {
        "wall_s": round(wall_s, 4),
        "output_tokens": num_tokens,
        "output_tokens_per_s": round(num_tokens / wall_s, 3),
        "first_token_mean_s": round(statistics.mean(firsts_s), 4),
        "first_token_p99_s": round(percentile(firsts_s, 0.99), 4),
        "between_p50_s": round(percentile(gaps_s, 0.5), 5),
        "between_p99_s": round(percentile(gaps_s, 0.99), 5),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed; 0 of none."""
    ranked = sorted(values)
    if not ranked:
        return 0.0
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]
