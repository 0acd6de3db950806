"""What the protocol layer costs: its parts by themselves, over HTTP, and as a proxy.

    python bench/protocol.py [--rounds N] [--streams N] [--parts NAME ...] [--output FILE]

CPU seconds of this process only; the client of the HTTP part is another, and so is the server
behind the proxy. The engine is a script: the tokens of one answer go through the same text layer as
those of the real one. The server behind the proxy sends each stream 30 tokens a second. Parts that
are not measured stay in the file as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from msgspec import json as msgspec_json
from server import ROOT, Replay, machine
from sse_server import Script, start
from starting import START_S

from fathom.config import EngineConfig
from fathom.core.types import SamplingParams, TokenEvent
from fathom.engine.async_engine import AsyncEngine
from fathom.engine.requests import GenerateRequest
from fathom.engine.timing import NoObserver
from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.engine import UpstreamEngine
from fathom.server.app import Application
from fathom.server.config import ServerConfig
from fathom.server.listen import listen
from fathom.server.run import http_server, url_of
from fathom.server.state import ServerState
from fathom.text.chat import TEMPLATES, encode_chat, render_chat
from fathom.text.delta import Delta
from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from fathom.text.output import OutputFormat, OutputStream
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path

ROUND_S = 300.0
PROSE = "The pool gives pages back when no plan in flight mentions them any more. " * 40
ARGUMENTS = json.dumps({"path": "src/pool.py", "lines": list(range(120)), "text": PROSE[:1500]})
CALL = "".join((CALLS_BEGIN, CALL_BEGIN, "edit", SEP, ARGUMENTS, CALL_END, CALLS_END))
TOOL = {"type": "function", "function": {"name": "edit", "parameters": {"type": "object"}}}
TALK = [
    {"role": role, "content": f"{number}: {PROSE[:600]}"}
    for number in range(10)
    for role in ("user", "assistant")
] + [{"role": "user", "content": "Go on."}]


class Scripted(Replay):
    """Says a call where tools are offered, else prose, `max_tokens` tokens of it."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[tuple[Delta, ...], None]:
        """One token a turn of the loop, through the text layer."""
        tokenizer, num_tokens = self.text.tokenizer, request.sampling.max_tokens or 1
        stream = OutputStream(tokenizer, request.sampling, format=request.format, name=request.id)
        ids = answer_ids(tokenizer, request.format.tools is not None, num_tokens)
        for index, token_id in enumerate(ids):
            await asyncio.sleep(0)
            end = "length" if index == len(ids) - 1 else None
            delta = stream.push(TokenEvent("r", (token_id,), finish_reason=end))
            if delta is not None:
                yield (delta,)


def answer_ids(tokenizer: Tokenizer, calls: bool, num_tokens: int) -> tuple[int, ...]:
    """The script's tokens."""
    ids = tokenizer.encode(CALL if calls else PROSE, special=True)
    return (ids * (num_tokens // len(ids) + 1))[:num_tokens]


def cpu_s(work: Callable[[], int], rounds: int) -> dict[str, Any]:
    """CPU seconds for one of what `work` counts: the median and all samples."""
    samples = []
    for _ in range(rounds + 1):
        began = time.process_time()
        count = work()
        samples.append((time.process_time() - began) / count)
    return {"median_s": statistics.median(samples[1:]), "samples_s": samples[1:]}


def alone(tokenizer: Tokenizer, rounds: int) -> dict[str, Any]:
    """The parts by themselves, on this tokenizer and V3.1's template."""
    template = TEMPLATES["deepseek-v3.1"]

    def parse(calls: bool, form: OutputFormat) -> int:
        ids = answer_ids(tokenizer, calls, 4_000)
        stream = OutputStream(tokenizer, SamplingParams(), format=form)
        for token_id in ids:
            stream.push(TokenEvent("r", (token_id,)))
        return len(ids)

    def render() -> int:
        return sum(1 for _ in range(50) if render_chat(template, TALK))

    def encode() -> int:
        return sum(1 for _ in range(10) if encode_chat(tokenizer, template, TALK))

    def to_json() -> int:
        choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}
        return sum(1 for _ in range(5_000) if b"data: " + msgspec_json.encode(chunk) + b"\n\n")

    read = OutputFormat(splits_reasoning=True, tools="bare")
    return {
        "text, nothing read": cpu_s(lambda: parse(False, OutputFormat()), rounds),
        "text, calls looked for": cpu_s(lambda: parse(False, read), rounds),
        "a tool call": cpu_s(lambda: parse(True, read), rounds),
        "a chunk of JSON": cpu_s(to_json, rounds),
        f"a prompt of {len(TALK)} messages": cpu_s(render, rounds),
        "the same, and its tokens": cpu_s(encode, rounds),
    }


def run_client(url: str) -> None:
    """The other process: a line `streams tokens calls` in, the streams that ended well out."""
    host, port = url.rpartition("/")[2].rsplit(":", 1)

    async def stream(num_tokens: int, calls: bool) -> int:
        body: dict[str, Any] = {"messages": TALK[-1:], "max_tokens": num_tokens, "stream": True}
        raw = json.dumps(body | ({"tools": [TOOL]} if calls else {})).encode()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
        )
        got = await reader.read()
        writer.close()
        assert (b"tool_calls" in got) == calls, got[:500]
        return int(b"data: [DONE]" in got)

    async def all_streams(streams: int, num_tokens: int, calls: int) -> int:
        return sum(await asyncio.gather(*(stream(num_tokens, bool(calls)) for _ in range(streams))))

    for line in sys.stdin:
        print(uvloop.run(all_streams(*map(int, line.split()))), flush=True)


def run_upstream() -> None:
    """The server behind the proxy: prints its port and answers."""
    tokenizer = Tokenizer.load(embedded_path())
    ids = tokenizer.encode(" ".join(f"word {number}," for number in range(200)))

    async def serve() -> None:
        pieces = [(tokenizer.decode([token_id]), token_id) for token_id in ids]
        server, port = await start(Script(gap_s=1 / 30, pieces=pieces))
        print(port, flush=True)
        await server.serve_forever()

    uvloop.run(serve())


async def as_proxy(streams: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """CPU of the proxy's process for a streamed token, with the model's tokenizer and without."""
    upstream = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--upstream"), stdout=subprocess.PIPE
    )
    assert upstream.stdout is not None
    async with asyncio.timeout(START_S):
        url = f"http://127.0.0.1:{int(await upstream.stdout.readline())}"
    told: dict[str, Any] = {}
    for name, files in (("with tokenizer", str(embedded_path())), ("without tokenizer", None)):
        config = UpstreamConfig(
            upstream=url, upstream_kind="vllm", tokenizer=files, max_model_len=4096
        )
        engine = await UpstreamEngine.start(config, None, NoObserver())
        try:
            await engine.ready()
            told |= await measured(engine, [name], streams, num_tokens, rounds)
        finally:
            await engine.close()
    upstream.kill()
    await upstream.wait()
    return told


async def over_http(streams: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """CPU of the API process for a streamed token, plain text and tool calls in turn."""
    engine = await AsyncEngine.start(EngineConfig(kv_cache_memory_bytes=128 * 2**20))
    try:
        await engine.ready()
        names = ["plain text", "a tool call"]
        return await measured(Scripted(engine), names, streams, num_tokens, rounds)
    finally:
        await engine.close()


async def measured(
    engine: Any, names: list[str], streams: int, num_tokens: int, rounds: int
) -> dict[str, Any]:
    """CPU of this process for a streamed token of `engine`; the second of `names` is of calls."""
    state = ServerState(ServerConfig(port=0))
    samples: dict[str, list[float]] = {name: [] for name in names}
    try:
        state.engine = engine
        listener = listen("127.0.0.1", 0)
        server = http_server(Application(state))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--client", url_of(listener)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        for number in range(rounds + 1):
            for calls, name in enumerate(samples):
                began = time.process_time()
                client.stdin.write(f"{streams} {num_tokens} {calls}\n".encode())
                async with asyncio.timeout(ROUND_S):
                    assert int(await client.stdout.readline()) == streams
                if number:
                    spent = time.process_time() - began
                    samples[name].append(spent / (streams * num_tokens))
        client.kill()
        await client.wait()
        server.should_exit = server.force_exit = True
        await serving
    finally:
        state.close()
    told = {k: {"median_s": statistics.median(v), "samples_s": v} for k, v in samples.items()}
    return {"streams": streams, "tokens_a_stream": num_tokens, **told}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="after one of warm-up")
    parser.add_argument("--streams", type=int, default=256)
    parts = ("alone", "over_http", "as_proxy")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "protocol.json")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        run_client(options.client)
        return
    if options.upstream:
        run_upstream()
        return
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "alone": lambda: alone(Tokenizer.load(embedded_path()), options.rounds),
        "over_http": lambda: uvloop.run(over_http(options.streams, 200, options.rounds)),
        "as_proxy": lambda: uvloop.run(as_proxy(64, 100, options.rounds)),
    }
    report = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {}
    report["benchmark"] = "protocol"
    for part in options.parts:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        report[part] = {"started": started, "machine": machine(), **works[part]()}
        for name, row in report[part].items():
            if isinstance(row, dict) and "median_s" in row:
                print(f"{part:<9} {name:<32} {row['median_s'] * 1e6:8.2f} us")
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
