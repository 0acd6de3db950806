"""Compares what LangChain's ChatOpenAI reads with what a scripted engine was told to say."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL, call_text

CALL = call_text(("add", '{"a": 1, "b": 2}'))


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def llm(server: LiveServer, request: pytest.FixtureRequest) -> ChatOpenAI:
    more: dict[str, Any] = {"use_responses_api": True} if request.param else {}
    return ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_retries=0, **more
    )


def test_text_whole_and_streamed(llm: ChatOpenAI) -> None:
    whole = llm.invoke("What is the answer?")
    pieces = list(llm.stream("What is the answer?"))
    assert whole.text == "".join(piece.text for piece in pieces) == "The answer is 42."
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_a_tool_is_called_and_its_result_read(llm: ChatOpenAI, server: LiveServer) -> None:
    bound = llm.bind_tools([add])
    server.engine.answer = CALL
    asked: list[Any] = [HumanMessage("1 + 2?")]
    called: Any = bound.invoke(asked)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [
        ("add", {"a": 1, "b": 2})
    ]
    streamed: Any = None
    for piece in bound.stream(asked):
        streamed = piece if streamed is None else streamed + piece
    assert [call["args"] for call in streamed.tool_calls] == [{"a": 1, "b": 2}]
    server.engine.answer = "3"
    result = ToolMessage(str(add.invoke({"a": 1, "b": 2})), tool_call_id=called.tool_calls[0]["id"])
    assert bound.invoke([*asked, called, result]).text == "3"
