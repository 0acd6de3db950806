"""The driver of vLLM on a CPU, eager or compiled.

python -m bench.peers.vllm CHECKPOINT --threads N [--eager]
"""

from __future__ import annotations

import argparse
import time
from importlib import metadata
from typing import Any

from bench.peers.cases import decode_rate, prompts
from bench.peers.protocol import answer_calls

MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_BATCHED_TOKENS = 2304, 64, 2304
_TOP = 20


def environment(threads: int, preload: list[str], cache: str) -> dict[str, str]:
    """The variables that vLLM's documentation advises for a CPU, and no network."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CACHE_ROOT": cache,
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "LD_PRELOAD": ":".join(preload),
    }


class Vllm:
    """vLLM's offline engine."""

    def __init__(self, checkpoint: str, threads: int, *, is_eager: bool) -> None:
        from vllm import LLM

        self._is_eager, self._threads = is_eager, threads
        self._llm = LLM(
            model=checkpoint,
            dtype="bfloat16",
            enforce_eager=is_eager,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def facts(self) -> dict[str, Any]:
        """Versions and settings."""
        names = ("vllm-cpu", "torch", "transformers")
        return {
            "versions": {name: metadata.version(name) for name in names},
            "settings": {"enforce_eager": self._is_eager, "threads": self._threads},
        }

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """One sample."""
        first_s = self._seconds(prompts(case, "first"), 1)
        if case["kind"] == "prefill":
            return {"rate": case["batch"] * case["context"] / first_s}
        whole_s = self._seconds(prompts(case, "whole"), case["new_tokens"])
        return {"rate": decode_rate(case, whole_s, first_s)}

    def _seconds(self, asked: list[list[int]], new_tokens: int) -> float:
        begun = time.perf_counter()
        self._generate(asked, new_tokens)
        return time.perf_counter() - begun

    def _generate(self, asked: list[list[int]], new_tokens: int, **more: Any) -> Any:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=new_tokens, **more)
        return self._llm.generate(
            [{"prompt_token_ids": ids} for ids in asked], sampling, use_tqdm=False
        )

    def logprobs(self, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
        """Greedy tokens and their top 20."""
        answers = []
        for answer in self._generate(prompts, new_tokens, logprobs=_TOP):
            one = answer.outputs[0]
            tops = [
                sorted(([token, found.logprob] for token, found in row.items()), key=_descending)
                for row in one.logprobs
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
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    answer_calls(lambda: Vllm(args.checkpoint, args.threads, is_eager=args.eager))


if __name__ == "__main__":
    main()
