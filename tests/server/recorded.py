"""Exchanges of real clients with the server, recorded as they were on the wire, to be replayed.

    python -m tests.server.recorded     # records them again, into tests/server/corpus/

What differs from run to run (ids, times) is put aside in answers, and pieces of a stream that
differ only in their text are joined: how a text is cut is no part of an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL, call_text

CORPUS = Path(__file__).parent / "corpus"
ASK: list[Any] = [{"role": "user", "content": "What is 1 + 2?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
CALL = call_text(("add", '{"a": 1, "b": 2}'))
FUNCTION = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
_HEADERS = ("content-type", "accept", "user-agent", "anthropic-version", "anthropic-beta")
# Fields whose strings grow in a stream, and those that no two answers share.
_TEXTS = {
    *("text", "content", "reasoning_content", "reasoning", "thinking", "delta", "partial_json"),
    *("arguments", "response"),
}
_TIMES = re.compile(
    r"created(_at)?|modified_at|\w+_duration|sequence_number|e2e_latency|system_fingerprint"
)
_ID = re.compile(r"(?<=[_-])[0-9a-f]{24,32}(_\d+)?")


class Recorder(LiveServer):
    """A server that keeps what it is asked and what it answers."""

    def application(self) -> Any:
        """The application behind a recorder."""
        self.kept: list[dict[str, Any]] = []
        inner = super().application()

        async def recording(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            sent, told, status = bytearray(), bytearray(), 0

            async def heard() -> Any:
                message = await receive()
                sent.extend(message.get("body", b""))
                return message

            async def said(message: Any) -> None:
                nonlocal status
                status = message.get("status", status)
                told.extend(message.get("body", b""))
                await send(message)

            await inner(scope, heard, said)
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            query = scope["query_string"].decode()
            self.kept.append(
                {
                    "method": scope["method"],
                    "path": scope["path"] + (f"?{query}" if query else ""),
                    "headers": {name: headers[name] for name in _HEADERS if name in headers},
                    "body": json.loads(sent) if sent else None,
                    "engine": self.engine.answer,
                    "status": status,
                    "answer": steady(bytes(told).decode()),
                }
            )

        return recording


def steady(text: str) -> list[Any]:
    """The objects of an answer, whole or a stream, without what differs from run to run."""
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line)
    told: list[Any] = []
    for line in lines:
        if line.startswith((":", "event: ping")) or line == '{"type":"ping"}':
            continue
        is_json = line[:1] in ("{", "[") and line != "[DONE]"
        one = _steady(json.loads(line)) if is_json else line
        _join(told, one)
    return told


def _steady(told: Any, name: str = "") -> Any:
    if isinstance(told, dict):
        return {key: _steady(value, key) for key, value in told.items()}
    if isinstance(told, list):
        return [_steady(item, name) for item in told]
    if _TIMES.fullmatch(name) and told is not None:
        return "TIME"
    return _ID.sub("ID", told) if isinstance(told, str) else told


def _join(told: list[Any], one: Any) -> None:
    """Put `one` behind, or into the last where the two differ in texts only."""
    if isinstance(one, str) and one.startswith("event: ") and told[-2:-1] == [one]:
        return  # an event of the same name as the last: it may be joined to it
    if told and isinstance(told[-1], dict) and _shape(told[-1]) == _shape(one):
        told[-1] = _sum(told[-1], one)
    else:
        told.append(one)


def _shape(told: Any, name: str = "") -> Any:
    if isinstance(told, dict):
        return {key: _shape(value, key) for key, value in told.items()}
    if isinstance(told, list):
        return [_shape(item, name) for item in told]
    return "TEXT" if name in _TEXTS and isinstance(told, str) and told else told


def _sum(first: Any, second: Any, name: str = "") -> Any:
    if isinstance(first, dict):
        return {key: _sum(first[key], second[key], key) for key in first}
    if isinstance(first, list):
        return [_sum(*both, name) for both in zip(first, second, strict=True)]
    return first + second if name in _TEXTS and isinstance(first, str) else first


def _openai(server: Recorder) -> Iterator[str]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chat: Callable[..., Any] = client.chat.completions.create
        yield "The answer is 3."
        client.models.list()
        chat(model=MODEL, messages=ASK, temperature=0, seed=1, n=2, logprobs=True, top_logprobs=1)
        list(chat(model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}))
        client.completions.create(model=MODEL, prompt=["1 +", "2 +"], max_tokens=3, echo=True)
        client.responses.create(model=MODEL, input="1 + 2?", store=False)
        list(client.responses.create(model=MODEL, input="1 + 2?", store=False, stream=True))
        yield "Adding.</think>It is 3."
        list(chat(model=MODEL, messages=ASK, stream=True, reasoning_effort="high"))
        yield CALL
        call = chat(model=MODEL, messages=ASK, tools=TOOLS).choices[0].message
        list(chat(model=MODEL, messages=ASK, tools=TOOLS, stream=True))
        yield "3"
        result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "3"}
        chat(model=MODEL, messages=[*ASK, call, result], tools=TOOLS)


def _anthropic(server: Recorder) -> Iterator[str]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 100}
        tools = [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}]
        yield "The answer is 3."
        client.messages.create(**asked, system="Be brief.", stop_sequences=["!"])
        client.messages.count_tokens(model=MODEL, messages=ASK)
        list(client.messages.create(**asked, stream=True))
        yield f"Adding.</think>Let me see.{CALL}"
        thinking = {"type": "enabled", "budget_tokens": 1024}
        with client.messages.stream(
            **asked | {"max_tokens": 200}, tools=tools, thinking=thinking
        ) as stream:
            answer = stream.get_final_message()
        yield "3"
        use = answer.content[-1]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "3"}
        turns = [{"role": "assistant", "content": answer.content}]
        client.messages.create(
            **asked | {"messages": [*ASK, *turns, {"role": "user", "content": [result]}]},
            tools=tools,
        )


def _ollama(server: Recorder) -> Iterator[str]:
    with ollama.Client(host=server.url) as client:
        yield "The answer is 3."
        client.list()
        client.chat(model=MODEL, messages=ASK, options={"temperature": 0, "num_predict": 9})
        list(client.chat(model=MODEL, messages=ASK, stream=True))
        client.generate(model=MODEL, prompt="1 + 2?", system="Be brief.")
        yield f"Adding.</think>{CALL}"
        asked: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "think": True}
        called = client.chat(**asked, messages=ASK).message
        list(client.chat(**asked, messages=ASK, stream=True))
        yield "So.</think>3"
        client.chat(**asked, messages=[*ASK, called, {"role": "tool", "content": "3"}])


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


class Sum(BaseModel):
    """A sum."""

    total: int


def _langchain(server: Recorder) -> Iterator[str]:
    for more in ({}, {"use_responses_api": True, "store": False}):
        base = f"{server.url}/v1"
        llm = ChatOpenAI(model=MODEL, base_url=base, api_key="none", max_retries=0, **more)
        yield "The answer is 3."
        llm.invoke("1 + 2?")
        list(llm.stream("1 + 2?"))
        yield CALL
        asked: list[Any] = [HumanMessage("1 + 2?")]
        called: Any = llm.bind_tools([add]).invoke(asked)
        yield "3"
        result = ToolMessage("3", tool_call_id=called.tool_calls[0]["id"])
        llm.bind_tools([add]).invoke([*asked, called, result])
        if not more:
            yield '{"total": 3}'
            llm.with_structured_output(Sum).invoke("1 + 2?")


CLIENTS = {
    "openai": _openai,
    "anthropic": _anthropic,
    "ollama": _ollama,
    "langchain": _langchain,
}


def main() -> None:
    """Record all clients."""
    CORPUS.mkdir(exist_ok=True)
    for name, session in CLIENTS.items():
        with Recorder(step_s=0.002) as server:
            for answer in session(server):
                server.engine.answer = answer
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in server.kept]
        (CORPUS / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
