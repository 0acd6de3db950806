"""Compares /generate with /v1/completions, which is the same generation in another form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10) as client:
        yield client


def test_one_prompt(http: httpx.Client) -> None:
    told = http.post("/generate", json={"text": "Hi"}).json()
    usage = http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 128}).json()["usage"]
    assert told["text"] == "The answer is 42."
    meta = told["meta_info"]
    assert meta["prompt_tokens"] == usage["prompt_tokens"]
    assert meta["completion_tokens"] == usage["completion_tokens"]
    assert meta["finish_reason"] == {"type": "stop"}
    assert len(told["output_ids"]) == usage["completion_tokens"]


@pytest.mark.parametrize(
    ("prompt", "n", "count"),
    [("Hi", 1, None), ("Hi", 2, 2), (["Hi", "Ho"], 1, 2), (["Hi"], 1, 1), (["Hi", "Ho"], 2, 4)],
)
def test_batches(http: httpx.Client, prompt: Any, n: int, count: int | None) -> None:
    body = {"text": prompt, "sampling_params": {"n": n, "max_new_tokens": 3}}
    told = http.post("/generate", json=body).json()
    if count is None:
        told, count = [told], 1
    assert len(told) == count
    assert all(one["meta_info"]["finish_reason"] == {"type": "length", "length": 3} for one in told)
    events = http.post("/generate", json={**body, "stream": True}).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    last = {chunk.get("index", 0): chunk for chunk in chunks}
    assert [last[index]["text"] for index in range(count)] == [one["text"] for one in told]
    assert len({one["meta_info"]["id"] for one in told}) == (len(prompt) if count > n else 1)


def test_logprobs(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    body = {
        "input_ids": ids,
        "return_logprob": True,
        "top_logprobs_num": 2,
        "logprob_start_len": 0,
        "return_text_in_logprobs": True,
    }
    told = http.post("/generate", json=body).json()
    meta = told["meta_info"]
    assert [row[1] for row in meta["input_token_logprobs"]] == ids
    assert [row[1] for row in meta["output_token_logprobs"]] == told["output_ids"]
    texts = http.post("/tokenize", json={"prompt": "Once upon a time", "return_token_strs": True})
    assert [row[2] for row in meta["input_token_logprobs"]] == texts.json()["token_strs"]
    assert meta["input_token_logprobs"][0][0] is meta["input_top_logprobs"][0] is None
    assert len(meta["input_top_logprobs"]) == len(ids)  # a row beside each token's
    other = http.post(
        "/v1/completions", json={"prompt": ids, "logprobs": 2, "max_tokens": 128}
    ).json()["choices"][0]["logprobs"]
    assert [row[0] for row in meta["output_token_logprobs"]] == other["token_logprobs"]
    assert [row[2] for row in meta["output_token_logprobs"]] == other["tokens"]
    assert all(len(row) == 2 for row in meta["output_top_logprobs"])
    later = http.post("/generate", json={**body, "logprob_start_len": 2}).json()["meta_info"]
    for name in ("input_token_logprobs", "input_top_logprobs"):
        assert later[name] == meta[name][2:]


def test_fields_reach_the_engine(http: httpx.Client, server: LiveServer) -> None:
    params = {
        "temperature": 0.5, "top_p": 0.8, "top_k": 3, "min_p": 0.1, "frequency_penalty": 0.3,
        "presence_penalty": 0.2, "repetition_penalty": 1.1, "min_new_tokens": 2, "stop": ["x"],
        "stop_token_ids": [7], "no_stop_trim": True, "ignore_eos": True,
        "skip_special_tokens": False, "logit_bias": {"5": -1.0}, "sampling_seed": 4,
    }  # fmt: skip
    told = http.post(
        "/generate",
        json={
            "text": "Hi",
            "sampling_params": params,
            "rid": "me",
            "extra_key": "t",
            "priority": 2,
        },
    ).json()
    assert told["meta_info"]["id"] == "me"
    request = server.engine.requests[-1]
    sampling = request.sampling
    assert (request.cache_salt, request.priority) == ("t", 2)
    renamed = {
        "min_new_tokens": "min_tokens",
        "no_stop_trim": "include_stop_str_in_output",
        "sampling_seed": "seed",
    }
    wanted = {**params, "stop": ("x",), "stop_token_ids": (7,), "logit_bias": {5: -1.0}}
    for name, value in wanted.items():
        assert getattr(sampling, renamed.get(name, name)) == value


def test_lists_are_of_each_prompt(http: httpx.Client, server: LiveServer) -> None:
    """Each prompt is answered as it would be alone."""
    alone: list[dict[str, Any]] = [
        {"text": "Hi", "rid": "a", "return_logprob": True, "logprob_start_len": 1,
         "top_logprobs_num": 2, "sampling_params": {"max_new_tokens": 2}, "extra_key": "x"},
        {"text": "Ho there", "rid": "b", "return_logprob": False, "logprob_start_len": 0,
         "top_logprobs_num": 0, "sampling_params": {"temperature": 0.5}, "extra_key": ""},
        {"text": "Ha", "rid": "c", "return_logprob": True, "logprob_start_len": -1,
         "top_logprobs_num": 0, "sampling_params": {"stop": "42"}, "extra_key": "x"},
    ]  # fmt: skip
    wanted = [http.post("/generate", json=one).json() for one in alone]
    asked = server.engine.requests[-3:]
    told = http.post("/generate", json={key: [one[key] for one in alone] for key in alone[0]})
    assert server.engine.requests[-3:] == asked
    answers = told.json()
    for one in (*wanted, *answers):
        del one["meta_info"]["e2e_latency"]
    assert answers == wanted


def test_model_and_cache(http: httpx.Client, server: LiveServer) -> None:
    told = http.get("/get_model_info").json()
    assert (told["served_model_name"], told["is_generation"]) == (MODEL, True)
    assert http.post("/flush_cache").status_code == 200
    assert server.engine.num_flushes == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": [1, [2]]}, "input_ids"),
        ({"text": "a", "zz": 1}, "zz"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "sampling_params.ebnf"),
        ({"text": "a", "sampling_params": {"max_tokens": 1}}, "sampling_params.max_tokens"),
        ({"text": "a", "top_logprobs_num": 1}, "top_logprobs_num"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "logprob_start_len": -2}, "logprob_start_len"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "y" * 257]}, "rid[1]"),
        ({"text": "a", "rid": "x" * 257}, "rid"),
        ({"text": "a", "rid": "x\n"}, "rid"),
        ({"text": ["a", "b"], "sampling_params": []}, "sampling_params"),
        ({"text": ["a", "b"], "return_logprob": [True] * 3}, "return_logprob"),
        ({"text": ["a", "b"], "logprob_start_len": [0]}, "logprob_start_len"),
        ({"text": ["a", "b"], "extra_key": ["k"]}, "extra_key"),
        ({"text": ["a", "b"], "return_logprob": [True, False], "top_logprobs_num": [0, 1]},
         "top_logprobs_num[1]"),
        ({"text": ["a", "b"], "return_logprob": True, "top_logprobs_num": [0, 999]},
         "top_logprobs_num[1]"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]}, "sampling_params[1].n"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"top_p": 2}]}, "sampling_params[1].top_p"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"zz": 2}]}, "sampling_params[1].zz"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"max_tokens": 2}]},
         "sampling_params[1].max_tokens"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"regex": "a", "ebnf": "b"}]},
         "sampling_params[1].ebnf"),
        ({"text": ["a"] * 200, "sampling_params": {"n": 3}}, "sampling_params.n"),
        ({"text": "a", "sampling_params": {"stop_token_ids": [10**6]}},
         "sampling_params.stop_token_ids"),
        ({"text": "a", "sampling_params": {"logit_bias": {"1000000": 1}}},
         "sampling_params.logit_bias"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 9999, "max_new_tokens": 9999}},
         "sampling_params.min_new_tokens"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_named(http: httpx.Client, body: Any, param: str) -> None:
    response = http.post("/generate", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
