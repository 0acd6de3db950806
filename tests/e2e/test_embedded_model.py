"""Compares the embedded model, as served, with transformers' DeepseekV3 on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from fathom import LLM, SamplingParams
from fathom.spec.parallel import Shard
from fathom.weights.embedded import embedded_path
from fathom.weights.open import load_parameters, open_checkpoint
from tests.models.hf_models import load_params

NUM_TOKENS = 64
PROMPTS = [
    "What is fathom?",
    "fathom 是什么？",
    "How do I start the server?",
    "怎么启动服务？",
    "What is MLA?",
    "What does MTP mean?",
    "What is FP8?",
    "Hello!",
    "你好",
    "Who are you?",
    "你是谁？",
    "Thank you very much.",
    "What is the capital of France?",
    "中国的首都是哪里？",
    "What is 27 + 58?",
    "计算 123 + 456。",
    "Repeat exactly: red stone 42 river",
    "请原样重复：苹果 7 山",
    "Tell me something about the sea.",
    'Extract as JSON: "Anna is 31 years old and lives in Oslo."',
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32", kv_cache_dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def reference() -> DeepseekV3ForCausalLM:
    path = embedded_path()
    fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
    del fields["quantization_config"]  # the values are given dequantised
    config = DeepseekV3Config(**fields)
    config._attn_implementation = "eager"
    model = DeepseekV3ForCausalLM(config).eval()
    params = load_parameters(
        open_checkpoint(path),
        Shard(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        dequantize=True,
    )
    load_params(model, params)
    return model


def _continue(model: DeepseekV3ForCausalLM, prompt_ids: list[int]) -> tuple[list[int], list[float]]:
    """The greedy continuation, and by how much each token led the next best."""
    ids: list[int] = []
    margins = []
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            # Everything again for each token: no cache whose interface changes between versions.
            best = model(torch.tensor([prompt_ids + ids]), use_cache=False).logits[0, -1].topk(2)
            ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
    return ids, margins


def test_greedy_continuations_equal_the_reference(
    llm: LLM, reference: DeepseekV3ForCausalLM
) -> None:
    """64 tokens of 20 prompts, all in one batch here and one by one there."""
    greedy = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    outputs = llm.chat(
        [[{"role": "user", "content": prompt}] for prompt in PROMPTS], greedy, use_tqdm=False
    )
    wrong = []
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids, margins = _continue(reference, list(output.prompt_token_ids))
        if list(output.outputs[0].token_ids) != ids:
            wrong.append((prompt, output.outputs[0].text, min(margins)))
    assert not wrong


def test_prompt_logprobs_equal_the_reference(llm: LLM, reference: DeepseekV3ForCausalLM) -> None:
    prompt = llm.get_tokenizer().encode("fathom serves models; " * 40)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    [output] = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
    with torch.inference_mode():
        logprobs = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[i - 1, prompt[i]]) for i in range(1, len(prompt))]
    assert output.prompt_logprobs is not None
    found = [
        row[token].logprob
        for row, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
        if row is not None
    ]
    assert found == pytest.approx(wanted, abs=1e-3)
