"""The driver of fathom itself, through `fathom.LLM`.

python -m bench.peers.fathom_side CHECKPOINT --threads N [--quantization int8|int4|fp8]
"""

from __future__ import annotations

import argparse
import time
from importlib import metadata
from typing import Any

import torch

from bench.peers.cases import decode_rate, prompts
from bench.peers.protocol import answer_calls
from fathom import LLM, SamplingParams

_TOP = 20


class Fathom:
    """fathom's offline engine. A quantisation that it does not know is its own error."""

    def __init__(self, checkpoint: str, threads: int, quantization: str | None) -> None:
        self._settings: dict[str, Any] = {"threads": threads, "kv_cache_memory_bytes": 2 << 30}
        if quantization:
            self._settings["quantization"] = quantization
        self._llm = LLM(checkpoint, dtype="bfloat16", max_num_seqs=64, **self._settings)

    def facts(self) -> dict[str, Any]:
        """Versions and settings."""
        version = metadata.version("fathom-llm")
        reasons = {one.field: f"{one.value}: {one.reason}" for one in self._llm.plan.decisions}
        return {
            "versions": {"fathom-llm": version, "torch": torch.__version__},
            "settings": {**self._settings, "ops_backend": reasons["ops_backend"]},
        }

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """One sample."""
        first_s = self._seconds(prompts(case, "first"), 1)
        if case["kind"] == "prefill":
            return {"rate": case["batch"] * case["context"] / first_s}
        whole_s = self._seconds(prompts(case, "whole"), case["new_tokens"])
        return {"rate": decode_rate(case, whole_s, first_s)}

    def _seconds(self, asked: list[list[int]], new_tokens: int) -> float:
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=new_tokens)
        begun = time.perf_counter()
        self._llm.generate([{"prompt_token_ids": ids} for ids in asked], sampling, use_tqdm=False)
        return time.perf_counter() - begun

    def logprobs(self, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
        """Greedy tokens and their top 20."""
        sampling = SamplingParams(
            temperature=0.0, ignore_eos=True, max_tokens=new_tokens, logprobs=_TOP
        )
        answers = []
        for prompt in prompts:
            asked = {"prompt_token_ids": prompt}
            one = self._llm.generate([asked], sampling, use_tqdm=False)[0].outputs[0]
            tops = [
                sorted(([token, found.logprob] for token, found in row.items()), key=_descending)
                for row in one.logprobs or []
            ]
            answers.append({"tokens": list(one.token_ids), "top": [top[:_TOP] for top in tops]})
        return answers


def _descending(pair: list[float]) -> float:
    return -pair[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quantization")
    args = parser.parse_args()
    answer_calls(lambda: Fathom(args.checkpoint, args.threads, args.quantization))


if __name__ == "__main__":
    main()
