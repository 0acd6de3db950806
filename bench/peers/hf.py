"""The driver of transformers: the reference of the others' output, and a peer in bfloat16.

python -m bench.peers.hf CHECKPOINT --dtype bfloat16|float32 --threads N
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import transformers

from bench.peers.cases import decode_rate, prompts
from bench.peers.protocol import answer_calls

# Its ways to compute experts. The one that gathers weights for every token is for few tokens only.
_EXPERTS = {"prefill": ("grouped_mm", "eager"), "decode": ("grouped_mm", "eager", "batched_mm")}
_TOP = 20
# Its decoding is slow: fewer tokens say the same.
_NEW_TOKENS = 9


class Transformers:
    """A loaded model. `measure` takes the best of its ways to compute experts, found by trying."""

    def __init__(self, checkpoint: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self._model.set_experts_implementation("eager")
        self._best: dict[str, str] = {}
        self._threads = threads

    def facts(self) -> dict[str, Any]:
        """Versions and settings."""
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "settings": {"attention": "sdpa", "experts": self._best, "threads": self._threads},
        }

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """One sample; the first of a case also finds its best implementation of experts."""
        case = {**case, "new_tokens": min(case["new_tokens"], _NEW_TOKENS)}
        name = case["name"]
        if name not in self._best:
            brief = {**case, "new_tokens": min(case["new_tokens"], 5)}
            rates = {way: self._rate(brief, way) for way in _EXPERTS[case["kind"]]}
            self._best[name] = max(rates, key=lambda way: rates[way])
        return {"rate": self._rate(case, self._best[name]), "settings": self._best[name]}

    def _rate(self, case: dict[str, Any], experts: str) -> float:
        is_prefill = case["kind"] == "prefill"
        self._model.set_experts_implementation(experts if is_prefill else "eager")
        ids = torch.tensor(prompts(case, experts))
        begun = time.perf_counter()
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        first_s = time.perf_counter() - begun
        if is_prefill:
            return float(ids.numel() / first_s)
        self._model.set_experts_implementation(experts)
        first_s = time.perf_counter() - begun
        for _ in range(case["new_tokens"] - 1):
            out = self._model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return decode_rate(case, time.perf_counter() - begun, first_s)

    def logprobs(self, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
        """Greedy tokens and their top 20."""
        answers = []
        for prompt in prompts:
            out = self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
            tops = _tops(out.logits[0])
            while len(tops) < new_tokens:
                token = torch.tensor([[int(tops[-1][0][0])]])
                out = self._model(token, past_key_values=out.past_key_values, use_cache=True)
                tops += _tops(out.logits[0])
            answers.append({"tokens": [int(top[0][0]) for top in tops], "top": tops})
        return answers

    def score(self, prompt: list[int], tokens: list[int]) -> list[list[list[float]]]:
        """The top 20 before each of `tokens`, which follow `prompt`."""
        ids = torch.tensor([prompt + tokens[:-1]])
        return _tops(self._model(ids, use_cache=False, logits_to_keep=len(tokens)).logits[0])


def _tops(logits: torch.Tensor) -> list[list[list[float]]]:
    """The 20 likeliest of each row, as [id, log-probability] pairs."""
    best = logits.float().log_softmax(-1).topk(_TOP)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[list(pair) for pair in zip(*row, strict=True)] for row in rows]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answer_calls(lambda: Transformers(args.checkpoint, args.dtype, args.threads))


if __name__ == "__main__":
    main()
