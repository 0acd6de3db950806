"""Compares workloads made from settings with the files and the tokenizer that they come from, and
tokens that a server is asked for with its tokenizer's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.commands.bench_config import DATASETS, DatasetConfig
from fathom.commands.bench_load import make_requests, make_workload, warmup_requests
from fathom.commands.bench_tokens import LocalTokens, ServerTokens, tokens_of
from fathom.commands.bench_traffic import TrafficConfig
from fathom.commands.client import Client
from fathom.errors import ConfigError
from fathom.perf.workload import LoadRequest
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.live_server import LiveServer

TOKENIZER = Tokenizer.load(embedded_path())
TOKENS = LocalTokens(TOKENIZER)
QUESTION, ANSWER = "What is 12 + 30, and why?", "It is 42, because 12 and 30 make 42."
FILES = {
    "sharegpt": json.dumps([{"conversations": [{"value": QUESTION}, {"value": ANSWER}]}]),
    "custom": json.dumps({"prompt": QUESTION}) + "\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens\n5,GPT-4,12,30\n",
    "timed_trace": json.dumps({"timestamp": 7000, "input_length": 9, "output_length": 3}),
}


def dataset(name: str, tmp_path: Path, **more: Any) -> DatasetConfig:
    if name not in FILES:
        return DatasetConfig(dataset_name=name, num_prompts=5, **more)
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    return DatasetConfig(dataset_name=name, dataset_path=str(path), num_prompts=5, **more)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_makes_the_requests_that_it_says(
    name: str, as_text: bool, tmp_path: Path
) -> None:
    made = make_requests(dataset(name, tmp_path), TOKENS, 3, as_text=as_text)
    assert made == make_requests(dataset(name, tmp_path), TOKENS, 3, as_text=as_text)
    assert len(made) == (1 if name == "timed_trace" else 5)
    for one in made:
        if isinstance(one.prompt, tuple):
            assert len(one.prompt) == one.prompt_len
            assert not set(one.prompt) & set(TOKENIZER.special_ids.values())
        elif name in ("sharegpt", "custom"):
            assert one.prompt == QUESTION
            assert one.prompt_len == len(TOKENIZER.encode(QUESTION))
    if name == "sharegpt":
        assert {one.output_len for one in made} == {len(TOKENIZER.encode(ANSWER))}
    short = make_requests(dataset(name, tmp_path, output_len=2), TOKENS, 3, as_text=as_text)
    assert {one.output_len for one in short} == {2}


def test_a_trace_begins_with_its_first_request_and_keeps_its_own_time(tmp_path: Path) -> None:
    made = make_requests(dataset("timed_trace", tmp_path), TOKENS, 0, as_text=False)
    assert [one.at_s for one in made] == [7.0]
    timed = make_workload(made, TrafficConfig(), 0, is_timed=True)
    assert [one.at_s for one in timed.requests] == [0.0]
    drawn = TrafficConfig(self_timed=False, request_rate=4.0)
    assert make_workload(made, drawn, 0, is_timed=True).requests[0].at_s == 0.25
    with pytest.raises(ConfigError, match="--no-self-timed"):
        make_workload(made, TrafficConfig(request_rate=4.0), 0, is_timed=True)


@pytest.mark.parametrize(
    ("traffic", "last_s"),
    [
        (TrafficConfig(request_rate=5.0), 20.0),
        (TrafficConfig(request_rate=5.0, burst_size=10), 20.0),
        (TrafficConfig(request_rate=5.0, burstiness=float("inf")), 20.0),
        (TrafficConfig(max_concurrency=3), 0.0),
    ],
)
def test_traffic_gives_the_arrivals(traffic: TrafficConfig, last_s: float) -> None:
    requests = [LoadRequest(prompt="x", prompt_len=1, output_len=1)] * 100
    load = make_workload(requests, traffic, 1, is_timed=False)
    assert load.requests[-1].at_s == pytest.approx(last_s)
    assert load == make_workload(requests, traffic, 1, is_timed=False)
    assert load.is_closed == (traffic.max_concurrency is not None)


def test_a_ramp_is_faster_at_its_end() -> None:
    requests = [LoadRequest(prompt="x", prompt_len=1, output_len=1)] * 2000
    ramp = TrafficConfig(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=100)
    times = [one.at_s for one in make_workload(requests, ramp, 1, is_timed=False).requests]
    assert times[200] - times[0] > 5 * (times[-1] - times[-201])


def test_warm_ups_have_the_lengths_and_not_the_tokens(tmp_path: Path) -> None:
    made = make_requests(dataset("random", tmp_path, input_len=20), TOKENS, 3, as_text=False)
    warm = warmup_requests(made, 7, TOKENS, 3, as_text=False)
    assert [one.prompt_len for one in warm] == [20] * 7
    assert not {one.prompt for one in warm} & {one.prompt for one in made}
    assert warmup_requests(made, 0, TOKENS, 3, as_text=False) == []


def test_a_vocabulary_is_the_tokenizers() -> None:
    vocabulary = TOKENS.vocabulary()
    assert len(vocabulary.ids) > 1000
    for token_id, text in zip(vocabulary.ids, vocabulary.texts, strict=True):
        assert TOKENIZER.decode([token_id]) == text
    assert not set(vocabulary.ids) & set(TOKENIZER.special_ids.values())


def test_a_server_gives_its_own_tokens() -> None:
    with LiveServer() as server:
        tokens = ServerTokens(Client(server.url, None), "scripted")
        assert tokens.count(QUESTION) == TOKENS.count(QUESTION)
        vocabulary = tokens.vocabulary()
        assert len(vocabulary.ids) > 100
        for token_id, text in zip(vocabulary.ids, vocabulary.texts, strict=True):
            assert TOKENIZER.decode([token_id]) == text
        wrong = ServerTokens(Client(server.url, None), "no such model")
        with pytest.raises(ConfigError, match="--tokenizer"):
            wrong.count("x")


def test_where_tokens_come_from(tmp_path: Path) -> None:
    client, path = Client("http://127.0.0.1:1", None), str(embedded_path())
    assert isinstance(tokens_of(path, None, client, "m"), LocalTokens)
    assert isinstance(tokens_of(None, path, client, "m"), LocalTokens)
    assert isinstance(tokens_of(None, "org/model", client, "m"), ServerTokens)
