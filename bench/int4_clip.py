"""Whether clipping the ranges of int4's groups helps: the embedded model, with and without.

    python -m bench.int4_clip [--output bench/results/int4_clip.json]

A group's range is shortened to the share, 1 to 0.8 of it, that makes the squared error of its
values smallest. Roles are held as `--quantization int4` holds them, in groups of each size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.quality import ROLES, RoleMeter, commit, machine
from fathom.config import EngineConfig
from fathom.engine.heldout import documents, embedded_heldout, read_rows
from fathom.engine.quality import Material
from fathom.engine.text_side import load_text
from fathom.ops.api import Weight
from fathom.spec.formats import INT4_GROUPS, INT8_CHANNEL

RESULTS = Path(__file__).parent / "results" / "int4_clip.json"
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)
IN_INT8 = ("q_a", "kv_a", "kv_b", "head")
IN_INT4 = {role for roles in ROLES for role in roles} - set(IN_INT8)


def rounded(values: torch.Tensor, group: int, clips: tuple[float, ...]) -> torch.Tensor:
    """`values` [N, K] as int4 would hold them with the best of `clips` for each group."""
    grouped = values.unflatten(-1, (-1, group))
    low = grouped.amin(-1, keepdim=True).clamp_max(0)
    high = grouped.amax(-1, keepdim=True).clamp_min(0)
    best = torch.zeros_like(grouped)
    least = torch.full_like(low, float("inf"))
    for clip in clips:
        scale = ((high - low) * clip / 15).clamp_min(2.0**-24).half().float()
        zero = (-low * clip / scale).round().clamp(0, 15)
        held = (((grouped / scale).round() + zero).clamp(0, 15) - zero) * scale
        error = (held - grouped).square().sum(-1, keepdim=True)
        best = torch.where(error < least, held, best)
        least = torch.minimum(error, least)
    return best.flatten(-2)


def measure(num_tokens: int) -> dict[str, Any]:
    """Divergences by size of group, without clips and with them."""
    config = EngineConfig()
    text = load_text(config)
    rows = documents(read_rows(embedded_heldout()), text, num_tokens)
    meter = RoleMeter(config, Material(text, rows))
    found = []
    for group in reversed(INT4_GROUPS):
        row: dict[str, Any] = {"group": group}
        for name, clips in (("plain", CLIPS[:1]), ("clipped", CLIPS)):

            def change(
                role: str, value: Weight, group: int = group, clips: tuple[float, ...] = clips
            ) -> Weight:
                """Values of int4, which are then held in bfloat16."""
                assert isinstance(value, torch.Tensor)
                return rounded(value, group, clips) if role in IN_INT4 else value

            row[name] = meter.measure(dict.fromkeys(IN_INT8, INT8_CHANNEL), change)
        found.append(row)
        print(group, row["plain"]["mean_kl"], row["clipped"]["mean_kl"], file=sys.stderr)
    return {
        "machine": machine(),
        "commit": commit(),
        "command": f"python -m bench.int4_clip --num-tokens {num_tokens}",
        "groups": found,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    told = json.dumps(measure(asked.num_tokens), indent=1)
    asked.output.write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
