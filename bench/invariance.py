"""What batch invariance costs: absorbed attention beside what an engine without it would do.

    python bench/invariance.py [--threads N] [--repeats 9] [--quick] [--output FILE]

A token's bits may not depend on how its prompt was cut into steps, so that prompts are computed by
the same absorbed attention as decoding. Without that promise a prompt would expand its latents to
keys and values of every head, which are three times shorter. Both are timed here, in turns: ours,
and the expansion by our own `linear` with torch's scaled_dot_product_attention after it. Everything
else is the same with and without the promise: sums run in one order, whatever the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ops_machine import commit, facts
from torch.nn import functional

from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.case_inputs import AttentionShape, Draw, held_inputs, make_inputs
from fathom.ops.cases import Case
from fathom.spec.model import Mla

_PAGE_SIZE = 64


def make_pair(heads: int, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Calls that attend from every token of one prompt, absorbed and with keys of every head."""
    mla = Mla(heads, None, 512, 128, 64, 128)
    shape = AttentionShape(mla, (length,), (length,), _PAGE_SIZE)
    case = Case("mla_attend", "prompt", {"H": heads}, "bfloat16", "bfloat16", attention=shape)
    ops, device = CpuBackend(), torch.device("cpu")
    inputs = make_inputs(case, device, Draw(case, device))
    absorbed = held_inputs(ops, case, inputs)
    weight = ops.hold([inputs["kv_b"]], dtype=torch.bfloat16)
    latents = inputs["cache"].view(-1, mla.latent_dim)[: len(inputs["batch"].positions)]
    latents = torch.nan_to_num(latents)
    query = inputs["query"].transpose(0, 1)[None]

    def multi_head() -> torch.Tensor:
        rows = ops.linear(latents[:, : mla.kv_lora_rank], weight).view(length, heads, -1)
        rope = latents[:, None, mla.kv_lora_rank :].expand(-1, heads, -1)
        key = torch.cat([rows[..., : mla.nope_dim], rope], dim=-1).transpose(0, 1)[None]
        value = rows[..., mla.nope_dim :].transpose(0, 1)[None]
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=inputs["scale"]
        )
        return found[0].transpose(0, 1)

    return {"absorbed": lambda: ops.mla_attend(**absorbed), "multi_head": multi_head}


def measure(heads: int, length: int, repeats: int) -> dict[str, Any]:
    """Samples of both in seconds, in turns, and the ratio of their medians."""
    calls = make_pair(heads, length)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if turn:  # the first is a warm-up
                samples[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(found) for name, found in samples.items()}
    return {
        "heads": heads,
        "length": length,
        "samples_s": samples,
        "median_s": medians,
        "absorbed_over_multi_head": medians["absorbed"] / medians["multi_head"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    library.start_threads(asked.threads)
    library.pin_caller()
    torch.set_num_threads(asked.threads)
    lengths = (16,) if asked.quick else (512, 2048)
    results = []
    with torch.inference_mode():
        for length in lengths:
            found = measure(16, length, asked.repeats)
            results.append(found)
            print(
                f"16 heads, a prompt of {length}: absorbed "
                f"{1e3 * found['median_s']['absorbed']:.2f} ms, multi-head "
                f"{1e3 * found['median_s']['multi_head']:.2f} ms, "
                f"ratio {found['absorbed_over_multi_head']:.2f}",
                flush=True,
            )
    if asked.output is not None:
        report = {"commit": commit(), "machine": facts(), "results": results}
        asked.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
