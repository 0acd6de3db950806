"""A reverse proxy that keeps what a client and fathom say to each other, and forces one tool call.

Bytes pass as they come, in both directions, but for the one request to which it adds a
`tool_choice` and a limit of reasoning. It must not know who the client is.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WAIT_S = 240.0
_THINKING_TOKENS = 64
# By path, what makes a request call the tool that reads files, after a short while of reasoning.
_FORCED: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "tool_choice": {"type": "tool", "name": "read"},
        "thinking": {"type": "enabled", "budget_tokens": _THINKING_TOKENS},
    },
    "/v1/chat/completions": {
        "tool_choice": {"type": "function", "function": {"name": "read"}},
        "thinking_token_budget": _THINKING_TOKENS,
    },
    "/v1/responses": {
        "tool_choice": {"type": "function", "name": "read"},
        "thinking_token_budget": _THINKING_TOKENS,
    },
}
_TOLD_HEADERS = ("anthropic-beta", "anthropic-version", "user-agent")
_LAST = {"message_stop", "[DONE]", "response.completed", "response.incomplete"}
_RESULTS = ('"type":"tool_result"', '"role":"tool"', '"type":"function_call_output"')


@dataclass(slots=True)
class Seen:
    """A request that went through, and its answer, `is_left` by the client before its end."""

    path: str
    headers: dict[str, str]
    body: bytes
    is_forced: bool = False
    status: int = 0
    answer: bytes = b""
    is_left: bool = False

    def told(self) -> dict[str, Any]:
        """What came of it."""
        body = json.loads(self.body or b"{}")
        events, usage, warnings = _read(self.answer)
        is_result = any(one in json.dumps(body, separators=(",", ":")) for one in _RESULTS)
        return {
            "path": self.path,
            "status": self.status,
            "has_tools": "tools" in body,
            "is_forced": self.is_forced,
            "content": _contents(body),
            "has_tool_result": is_result,
            "events": dict(events),
            "is_whole": bool(_LAST & events.keys()),
            "is_left": self.is_left,
            "usage": usage,
            "cached_tokens": _cached(usage),
            "warnings": warnings,
        }

    def fields(self) -> set[str]:
        """The paths of what the body says but for the conversation, short values behind them."""
        return set(_paths(json.loads(self.body or b"{}"), ""))


def _paths(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _paths(one, f"{where}[]")
    elif isinstance(value, dict) and value:
        for name, one in value.items():
            if where or name not in ("messages", "input"):
                is_schema = name in ("input_schema", "parameters")
                yield from _paths(None if is_schema else one, f"{where}.{name}".strip("."))
    elif value is None or (isinstance(value, str) and len(value) > 24) or ".name" in where:
        yield where
    else:
        yield f"{where} = {value}"


def _contents(body: dict[str, Any]) -> list[str]:
    """Each message or item by its role and the fields of its blocks."""
    told = []
    for message in body.get("messages") or body.get("input") or []:
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        kinds = [f"{block['type']}({', '.join(sorted(block))})" for block in blocks]
        rest = sorted(set(message) - {"role", "content", "type"})
        name = message.get("role") or message.get("type")
        told.append(f"{name}: {' + '.join([*kinds, *rest]) or 'text'}")
    return told


def _read(answer: bytes) -> tuple[Counter[str], dict[str, Any], list[str]]:
    """The events of an answer by name, its last counts, and what fathom warned of."""
    events: Counter[str] = Counter()
    usage: dict[str, Any] = {}
    warnings: list[str] = []
    for line in answer.decode().splitlines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            events["[DONE]"] += 1
            continue
        event = json.loads(line[6:])
        inner = event.get("message") or event.get("response") or {}
        part = event.get("content_block") or event.get("delta")
        kind = part.get("type") if isinstance(part, dict) else None
        name = event.get("type") or event.get("object") or "?"
        events[f"{name} {kind}" if kind else name] += 1
        usage = event.get("usage") or inner.get("usage") or usage
        warnings = event.get("warnings") or inner.get("warnings") or warnings
    return events, usage, warnings


def _cached(usage: dict[str, Any]) -> int:
    """Tokens of the prompt that the cache had, by the name of any API."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0)


@dataclass(slots=True)
class Proxy:
    """Passes requests on to fathom, forces one call, and keeps what it saw."""

    fathom_port: int
    seen: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request with fathom's answer, piece by piece."""
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        one = Seen(handler.path, headers, body)
        with self._lock:
            forced = _FORCED.get(handler.path.partition("?")[0])
            if forced and not any(other.is_forced for other in self.seen) and b'"tools"' in body:
                one.is_forced = True
                body = json.dumps({**json.loads(body), **forced}).encode()
            self.seen.append(one)
        dropped = ("host", "connection", "content-length", "accept-encoding")
        sent = {name: value for name, value in headers.items() if name not in dropped}
        fathom = HTTPConnection("127.0.0.1", self.fathom_port, timeout=WAIT_S)
        fathom.request(handler.command, handler.path, body or None, sent)
        got = fathom.getresponse()
        one.status = got.status
        handler.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while piece := got.read1(65_536):
                one.answer += piece
                handler.wfile.write(piece)
        except ConnectionError:
            one.is_left = True
        finally:
            fathom.close()

    def told(self) -> dict[str, Any]:
        """What all requests had in common, and what came of each."""
        headers = {pair for one in self.seen for pair in one.headers.items()}
        return {
            "headers": sorted(": ".join(one) for one in headers if one[0] in _TOLD_HEADERS),
            "fields": sorted(set().union(*(one.fields() for one in self.seen))),
            "requests": [one.told() for one in self.seen],
        }

    def keep(self, stem: Path) -> None:
        """Write bodies and answers beside each other, by their numbers."""
        for number, one in enumerate(self.seen):
            Path(f"{stem}_{number}.json").write_bytes(one.body)
            Path(f"{stem}_{number}.txt").write_bytes(one.answer)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its address."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.pass_on(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
