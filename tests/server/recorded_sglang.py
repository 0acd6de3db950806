"""What a real SGLang said to a proxy, for tests without one.

    python -m tests.server.recorded_sglang http://127.0.0.1:30000

records it anew: SGLang 0.5.23 on the embedded model as bfloat16, with `--reasoning-parser
deepseek-v3 --tool-call-parser deepseekv31 --enable-cache-report` and a template of DeepSeek-V3.1's
form. Each line has what a client `ask`s the proxy, what the proxy `sent`, the stream that came, and
`whole`: SGLang's own answer in one piece to the same request, which it parted by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.server.proxying import FILES, FakeUpstream, LiveProxy

FILE = Path(__file__).parent / "corpus" / "sglang_upstream.jsonl"
CHAT, SETTINGS = "/v1/chat/completions", "/server_info"
_FLAGS = (
    "version", "tool_call_parser", "enable_deterministic_inference", "enable_priority_scheduling"
)  # fmt: skip
_SUM: Any = {"messages": [{"role": "user", "content": "Compute 3 + 5."}]}
_SEARCH: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the web",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
        },
    },
}
_FORM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_TALK: dict[str, dict[str, Any]] = {
    "plain": _SUM,
    "reasoning": {**_SUM, "chat_template_kwargs": {"thinking": True}},
    "stop string": {**_SUM, "stop": ["5 ="]},
    "stop token": {**_SUM, "stop_token_ids": [42]},
    "a call": {"messages": [{"role": "user", "content": "Search bear"}], "tools": [_SEARCH]},
    "a bad regex": {**_SUM, "regex": "[a-"},
    "too long": {**_SUM, "max_tokens": 2040},
}
_ASKED: list[tuple[str, str | None, dict[str, Any]]] = [
    *((f"{name}, as text", None, ask) for name, ask in _TALK.items()),
    *((f"{name}, as tokens", FILES, ask) for name, ask in _TALK.items() if name != "too long"),
    ("a schema", None, {**_SUM, "response_format": {
        "type": "json_schema", "json_schema": {"name": "answer", "schema": _FORM}}}),
    ("scores", FILES, {**_SUM, "logprobs": True}),
]  # fmt: skip


def main(url: str) -> None:
    """Record every case at the SGLang behind `url`."""
    told = httpx.get(url + SETTINGS).json()
    settings = {name: told[name] for name in _FLAGS}
    lines = [json.dumps(settings)]
    for name, files, ask in _ASKED:
        ask = {"model": "deepseek", "temperature": 0, "max_tokens": 100, **ask}
        upstream = FakeUpstream(owner="sglang", settings=settings, status=400)
        with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
            httpx.post(proxy.url + CHAT, json={**ask, "model": "fake"})
        (sent,), path = upstream.bodies, upstream.heads[-1].split()[1]
        raw = httpx.post(url + path, json=sent, timeout=100)
        whole = httpx.post(url + CHAT, json=ask, timeout=100).json()
        row = {"name": name, "files": files is not None, "ask": ask, "path": path, "sent": sent}
        row |= {"status": raw.status_code, "raw": raw.text, "whole": whole}
        lines.append(json.dumps(row, ensure_ascii=False))
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
