"""Compares, bit for bit, what the engine answers on the CPU kernels to requests alone and together:
with neighbours, chunked prefill, prefix hits, preemption, drafts, and one thread or two."""

from __future__ import annotations

from typing import Any

import pytest

from fathom import LLM, SamplingParams
from fathom.engine.results import RequestOutput

TOPICS = ("the sea", "FP8", "a long day", "27 + 58", "山", "pages", "JSON", "red stone")
PREFIX = "fathom serves models of one architecture and says why it does what it does. " * 3
PROMPTS = [
    f"{PREFIX if i % 2 else ''}Tell me about {topic}. " * 2 for i, topic in enumerate(TOPICS)
]


def params(index: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=24 + 3 * index,
        temperature=0.0 if index % 3 else 0.9,
        top_p=0.95,
        seed=index,
        logprobs=3,
        ignore_eos=True,
    )


def facts(output: RequestOutput) -> tuple[Any, ...]:
    """Tokens, and their log-probabilities to the last bit."""
    answer = output.outputs[0]
    return tuple(answer.token_ids), answer.cumulative_logprob, repr(answer.logprobs)


@pytest.fixture(scope="module")
def wanted() -> list[tuple[Any, ...]]:
    with LLM(ops_backend="cpu", threads=1, enable_prefix_caching=False) as llm:
        outputs = [
            llm.generate([prompt], params(i), use_tqdm=False)[0] for i, prompt in enumerate(PROMPTS)
        ]
    return [facts(output) for output in outputs]


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 2},
        {"max_num_batched_tokens": 16, "max_num_seqs": 8},
        {"num_speculative_tokens": 1},
        {"block_size": 16, "max_model_len": 320, "kv_cache_memory_bytes": 1_600_000},
    ],
    ids=["together", "small_chunks", "drafts", "preemption"],
)
def test_together_is_as_alone(settings: dict[str, Any], wanted: list[tuple[Any, ...]]) -> None:
    with LLM(ops_backend="cpu", **settings) as llm:
        each = [params(i) for i in range(len(PROMPTS))]
        first = llm.generate(PROMPTS, each, use_tqdm=False)
        again = llm.generate(PROMPTS[::-1], each[::-1], use_tqdm=False)[::-1]  # prefixes are cached
    assert [facts(output) for output in first] == wanted
    assert [facts(output) for output in again] == wanted
