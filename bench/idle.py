"""How much of a decode step the kernels' threads idle: the host's share that nothing hides.

    python -m bench.idle [--model DIR] [--quantization int8|int4] [--batch 32] [--output FILE]

Each thread counts the time that it spends in work (`fathom_busy_ns`); what is missing to the wall
time of decoding is waiting: for the host between two ops or two steps, or for the other threads. A
sample is the difference between a run of `--steps` new tokens and one of a single token, so that
prefill drops out. The goal is at most 5 % at batch 32. Run it on an idle machine: a core that
another process takes counts as idle.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bench.ops_machine import commit
from fathom import LLM, SamplingParams
from fathom.ops.backends.cpu import library


@dataclass(frozen=True, slots=True)
class Sample:
    """Decoding of one batch: seconds a step, and the share of the threads' time without work."""

    step_s: float
    idle: float


def _told(value: object) -> str:
    return Path(str(value)).name


def _run(llm: LLM, batch: int, context: int, new_tokens: int, seed: int) -> tuple[float, float]:
    """Wall seconds, and busy seconds of all threads together."""
    drawn = Random(seed)
    vocab = llm.plan.model.vocab_size
    prompts: list[Any] = [
        {"prompt_token_ids": [drawn.randrange(vocab) for _ in range(context)]} for _ in range(batch)
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    busy, began = library.load().fathom_busy_ns(), time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - began, (library.load().fathom_busy_ns() - busy) / 1e9


def measure(llm: LLM, *, batch: int, context: int, steps: int, repeats: int) -> list[Sample]:
    """Samples of decoding `steps` tokens in a batch."""
    threads = library.load().fathom_num_threads()
    samples = []
    for repeat in range(-1, repeats):  # the first is a warm-up
        first = _run(llm, batch, context, 1, 2 * repeat)
        whole = _run(llm, batch, context, 1 + steps, 2 * repeat + 1)
        wall_s, busy_s = whole[0] - first[0], whole[1] - first[1]
        samples.append(Sample(wall_s / steps, 1 - busy_s / (threads * wall_s)))
    return samples[1:]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--quantization")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with LLM(
        model=asked.model,
        quantization=asked.quantization,
        ops_backend="cpu",
        enable_prefix_caching=False,
    ) as llm:
        samples = measure(
            llm,
            batch=asked.batch,
            context=asked.context,
            steps=asked.steps,
            repeats=asked.repeats,
        )
    idle = statistics.median(sample.idle for sample in samples)
    step_ms = 1e3 * statistics.median(sample.step_s for sample in samples)
    print(f"batch {asked.batch}: {step_ms:.2f} ms a step, threads idle {idle:.1%} (medians)")
    if asked.output is not None:
        result = {
            "commit": commit(),
            "machine": platform.processor() or platform.machine(),
            "isa": library.isa(),
            "workload": {k: _told(v) for k, v in vars(asked).items() if k != "output"},
            "idle_median": idle,
            "step_ms_median": step_ms,
            "samples": [{"step_s": sample.step_s, "idle": sample.idle} for sample in samples],
        }
        asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
