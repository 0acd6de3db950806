"""Compares what the server answers to requests that real clients sent
when they were recorded, with what those clients then understood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live_server import LiveServer
from tests.server.recorded import CLIENTS, CORPUS, steady

EXCHANGES = [
    pytest.param(json.loads(line), id=f"{name}-{number}")
    for name in CLIENTS
    for number, line in enumerate((CORPUS / f"{name}.jsonl").read_text("utf-8").splitlines())
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_recorded_request_is_answered_as_it_was(
    server: LiveServer, exchange: dict[str, Any]
) -> None:
    server.engine.answer = exchange["engine"]
    body = None if exchange["body"] is None else json.dumps(exchange["body"])
    response = httpx.request(
        exchange["method"],
        server.url + exchange["path"],
        headers=exchange["headers"],
        content=body,
        timeout=20,
    )
    assert response.status_code == exchange["status"] == 200
    assert steady(response.text) == exchange["answer"]
