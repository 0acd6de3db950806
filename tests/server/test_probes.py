"""Compares the probes' answers with the state of the engine, and the small routes with theirs."""

from __future__ import annotations

import httpx
import pytest

from fathom import __version__
from fathom.errors import EngineError
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CONTEXT


def test_an_engine_that_is_silent_is_not_ready(server: LiveServer) -> None:
    """A hung engine must not look healthy, and a restart of the API process would not help it."""
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    server.engine.silent_s = 60.0
    for path in ("/readyz", "/health"):
        response = httpx.get(server.url + path)
        assert response.status_code == 503
        assert response.json()["phase"] == "stalled"
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_an_engine_in_an_endless_step_is_not_ready(server: LiveServer) -> None:
    """The engine's process beats on while a step hangs, so a beat alone says too little."""
    server.engine.step_age_s = 300.0
    assert httpx.get(f"{server.url}/readyz").json()["phase"] == "stalled"
    server.engine.step_age_s = 0.1
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}


def test_a_dead_engine_says_why(server: LiveServer) -> None:
    server.engine.phase, server.engine.failure = "dead", EngineError("it broke")
    response = httpx.get(f"{server.url}/readyz")
    assert response.status_code == 503
    assert response.json()["error"] == "it broke"
    refused = httpx.get(f"{server.url}/v1/models")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]


def test_an_engine_that_is_not_there_yet(server: LiveServer) -> None:
    server.state.engine = None
    assert httpx.get(f"{server.url}/readyz").json()["phase"] == "loading"
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert httpx.get(f"{server.url}/v1/models").status_code == 503


def test_head_is_get_without_a_body(server: LiveServer) -> None:
    response = httpx.head(f"{server.url}/readyz")
    assert (response.status_code, response.content) == (200, b"")


def test_version(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/version").json() == {"version": __version__}


def test_tokens_there_and_back(server: LiveServer) -> None:
    text = "Hello 你好 🙂 <｜User｜>"
    told = httpx.post(
        f"{server.url}/tokenize", json={"prompt": text, "return_token_strs": True}
    ).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == CONTEXT
    special = set(server.engine.tokenizer.special_ids.values())
    bos = server.engine.tokenizer.bos_id
    assert not special & set(told["tokens"]) - {bos}
    back = httpx.post(
        f"{server.url}/detokenize", json={"tokens": told["tokens"], "skip_special_tokens": True}
    ).json()
    assert back == {"prompt": text}


def test_tokens_of_a_conversation_are_what_chat_sends(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    kwargs = {"chat_template_kwargs": {"thinking": True}}
    told = httpx.post(f"{server.url}/tokenize", json={"messages": messages, **kwargs}).json()
    httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages, **kwargs})
    assert told["tokens"] == list(server.engine.requests[-1].prompt_ids)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": []}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {"tokens": "a"}),
        ("/detokenize", {"tokens": [1], "model": "other"}),
    ],
)
def test_wrong_tokens(server: LiveServer, path: str, body: dict[str, object]) -> None:
    assert httpx.post(server.url + path, json=body).status_code in (400, 404)
