"""Compares `fathom run` on the embedded model with itself: streamed, whole, as a batch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fathom.commands.batch import run_batch
from fathom.commands.in_process import in_process
from fathom.config import EngineConfig
from fathom.errors import CheckpointError, FathomError

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    "temperature": 0,
    "max_tokens": 16,
}
CHAT = "/v1/chat/completions"


def test_one_engine_every_way(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"custom_id": str(i), "url": CHAT, "body": ASK} for i in range(20)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def run() -> tuple[str, str, int]:
        config = EngineConfig(kv_cache_memory_bytes=64 * 2**20, threads=1)
        async with in_process(config) as server:
            status, body = await server.post(CHAT, json.dumps(ASK).encode())
            assert status == 200
            whole = json.loads(body)["choices"][0]["message"]["content"]
            streamed = ""
            async for event in server.stream(CHAT, ASK):
                for choice in event["choices"]:
                    streamed += choice["delta"].get("content", "")
            with pytest.raises(FathomError, match="temprature"):
                await anext(server.stream(CHAT, {**ASK, "temprature": 1}))
            return whole, streamed, await run_batch(server, str(source), str(target))

    whole, streamed, num_failed = asyncio.run(run())
    assert streamed == whole
    assert num_failed == 0
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [str(i) for i in range(20)]
    texts = {a["response"]["body"]["choices"][0]["message"]["content"] for a in answers}
    assert texts == {whole}


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with in_process(EngineConfig(model=str(tmp_path / "none"))):
            raise AssertionError

    with pytest.raises(CheckpointError, match="does not exist"):
        asyncio.run(run())
