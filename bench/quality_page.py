"""Writes docs/quality.md from what `python -m bench.quality` measured.

python -m bench.quality_page
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.commands.eval import table
from fathom.spec.quality import Divergence, FormatQuality, TaskScore

RESULTS = Path(__file__).parent / "results" / "quality.json"
PAGE = Path(__file__).parents[1] / "docs" / "quality.md"


def page(results: Mapping[str, Any]) -> str:
    """docs/quality.md."""
    count = results["formats"][0]["divergence"]["num_positions"]
    machine = results["machine"]
    return "\n".join(
        [
            "# Quality by number format",
            "",
            "Generated from `bench/results/quality.json` by `python -m bench.quality_page`; a",
            f"test keeps it fresh. Measured by `{results['command']}`",
            f"at commit {results['commit']} on {machine['cpu']} ({machine['isa']}).",
            "",
            f"The embedded model predicts {count} tokens of right answers to questions that its",
            "training never saw (`src/fathom/weights/embedded/heldout.jsonl`). The reference is",
            "the reference backend in float32 on the same weights, which are stored in FP8.",
            "`fathom eval` repeats the first two tables, and measures other checkpoints and texts.",
            "",
            "## As loaded with `--quantization`",
            "",
            "`kv_fp8` is bf16 with `--kv-cache-dtype fp8`.",
            "",
            *table([_quality(row) for row in results["formats"]]),
            "",
            "## Checkpoints of `fathom quantize`",
            "",
            *table([_quality(row) for row in results["checkpoints"]]),
            "",
            "## By role",
            "",
            "One kind of matrix in int4 (groups of 128), or int8, all others in bfloat16.",
            "",
            "| role | bytes in int4 | mean KL | top-1 | bytes in int8 | mean KL | top-1 |",
            "|---|---|---|---|---|---|---|",
            *(_role_row(row) for row in results["roles"]),
            "",
            "All in int4 but some roles in int8: `spec/held.py` has the third row. The next gains",
            "more, but `o` is most of attention's weights in DeepSeek-V3, which every token",
            "reads.",
            "",
            "| int8 | bytes | mean KL | p99 KL | top-1 | perplexity |",
            "|---|---|---|---|---|---|",
            *(_rule_row(row) for row in results["rules"]),
            "",
        ]
    )


def _role_row(row: Mapping[str, Any]) -> str:
    scores = " | ".join(
        f"{row[name + '_bytes']:,} | {row[name]['mean_kl']:.2g} | {row[name]['top1']:.2%}"
        for name in ("int4", "int8")
    )
    return f"| {', '.join(row['roles'])} | {scores} |"


def _rule_row(row: Mapping[str, Any]) -> str:
    found = row["int4"]
    return (
        f"| {', '.join(row['int8']) or 'none'} | {row['bytes']:,} | {found['mean_kl']:.2g} "
        f"| {found['p99_kl']:.2g} | {found['top1']:.2%} | {found['perplexity']:.4f} |"
    )


def _quality(row: Mapping[str, Any]) -> FormatQuality:
    tasks = tuple(TaskScore(**task) for task in row["tasks"])
    return FormatQuality(**{**row, "divergence": Divergence(**row["divergence"]), "tasks": tasks})


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
