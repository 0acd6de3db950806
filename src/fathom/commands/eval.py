"""`fathom eval [MODEL]`: what each number format costs, against float32."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from fathom import log
from fathom.commands.files import write_file
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.serve import set_model
from fathom.config import EngineConfig
from fathom.errors import ConfigError
from fathom.spec.quality import FormatQuality, excess
from fathom.units import format_bytes

_DOC = """\
Runs a checkpoint in several number formats on text and compares each with float32: KL divergence
over the whole vocabulary, agreement of the likeliest token, perplexity; and, where the text has
questions with answers, how many greedy answers are valid and correct. Without arguments: the
embedded model on conversations that its training never saw.

  fathom eval
  fathom eval V2-Lite --formats bf16,int4 --text mine.txt
  fathom eval V2-Lite-int4 --formats stored --reference-model V2-Lite --text mine.txt

Formats: bf16, stored (as the checkpoint has them), fp8, int8, int4. A text is one document; a
.jsonl file has lines {"text": ...} or {"messages": [...], "completion": ..., "check": ...}, where
check is exact, number, json or calls."""
_FORMATS = "bf16,fp8,int8,int4"
_TAKEN = (
    *("model", "tokenizer", "dtype", "ops_backend", "kv_cache_dtype", "device", "threads"),
    *("max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes", "block_size"),
    *("max_num_seqs", "max_num_batched_tokens"),
)
EXIT_OVER_LIMIT = 1


def main(arguments: list[str]) -> int:
    """Measure; exits with 1 where `--check` finds a format over its limits."""
    namespace = _parser().parse(arguments)
    set_model(namespace)
    if namespace.num_tokens < 1:
        raise ConfigError("--num-tokens", found=str(namespace.num_tokens), wanted="1 or more")
    config = from_flags(EngineConfig, namespace)
    is_ours = config.model is None and namespace.text is None
    if namespace.check and not is_ours:
        raise ConfigError(
            "--check goes with the embedded model and its own text: limits are theirs"
        )
    if config.model is not None and namespace.text is None:
        raise ConfigError(
            "--text is needed with a checkpoint of yours",
            fix="--text FILE, of the kind of text that the model is for",
        )
    log.configure("warning")
    rows = _measure(config, namespace)
    return _tell(rows, namespace, is_ours)


def _parser() -> FlagParser:
    parser = FlagParser("eval", _DOC)
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="same as --model")
    group = parser.add_argument_group("what to measure")
    group.add_argument("--formats", default=_FORMATS, help=f"Default: {_FORMATS}.")
    group.add_argument("--text", type=Path, metavar="FILE", help="text, or JSONL, to measure on")
    group.add_argument(
        "--reference-model",
        metavar="DIR",
        help="checkpoint whose float32 is the reference; not given: the same one",
    )
    group.add_argument(
        "--num-tokens", type=int, default=4096, help="most tokens to compare. Default: 4096."
    )
    group.add_argument("--no-tasks", action="store_true", help="compare only, answer no questions")
    group = parser.add_argument_group("what to tell")
    group.add_argument("--json", action="store_true", help="JSON on stdout, not a table")
    group.add_argument("--output", type=Path, metavar="FILE", help="write JSON to FILE too")
    group.add_argument(
        "--check", action="store_true", help="fail where a format exceeds its limits"
    )
    skipped = [one.name for one in fields(EngineConfig) if one.name not in _TAKEN]
    add_flags(parser, EngineConfig, "engine", skip=skipped)
    return parser


def _measure(config: EngineConfig, namespace: Namespace) -> list[FormatQuality]:
    # Torch takes a second to load: not before the arguments are known to be right.
    from fathom.engine.heldout import Question, documents, embedded_heldout, read_rows
    from fathom.engine.quality import Material, evaluate
    from fathom.engine.text_side import load_text

    rows = read_rows(namespace.text or embedded_heldout())
    text = load_text(config)
    questions = tuple(row for row in rows if isinstance(row, Question))
    material = Material(
        text,
        documents(rows, text, namespace.num_tokens),
        () if namespace.no_tasks else questions,
    )
    reference = None
    if namespace.reference_model is not None:
        reference = replace(config, model=namespace.reference_model)
    return evaluate(
        config,
        [name.strip() for name in namespace.formats.split(",") if name.strip()],
        material,
        reference_config=reference,
        say=lambda what: print(what, file=sys.stderr, flush=True),
    )


def _tell(rows: Sequence[FormatQuality], namespace: Namespace, is_ours: bool) -> int:
    over = {row.format: why for row in rows if (why := excess(row.format, row.divergence))}
    told = json.dumps({"formats": [asdict(row) for row in rows]}, indent=1) + "\n"
    if namespace.output is not None:
        write_file("--output", namespace.output, (told.encode(),))
    print(told if namespace.json else "\n".join(table(rows)), end="" if namespace.json else "\n")
    if is_ours:
        for name, why in over.items():
            print(f"{name}: {why}", file=sys.stderr)
    return EXIT_OVER_LIMIT if namespace.check and over else 0


def table(rows: Sequence[FormatQuality]) -> Iterator[str]:
    """The measurements as Markdown: by format, then tasks by format."""
    yield "| format | backend | weights | mean KL | p99 KL | max KL | top-1 | perplexity |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        found = row.divergence
        yield (
            f"| {row.format} | {row.ops_backend} | {format_bytes(row.weight_bytes)} "
            f"| {found.mean_kl:.2g} | {found.p99_kl:.2g} | {found.max_kl:.2g} "
            f"| {found.top1:.2%} | {found.perplexity:.4f} |"
        )
    count = rows[0].divergence.num_positions
    yield ""
    yield f"KL divergence in nats, against float32, over {count} predicted tokens."
    if not rows[0].tasks:
        return
    yield ""
    yield "| correct answers | questions | " + " | ".join(row.format for row in rows) + " |"
    yield "|---|---" + "|---" * len(rows) + "|"
    for index, task in enumerate(rows[0].tasks):
        shares = " | ".join(_share(row, index) for row in rows)
        yield f"| {task.task} | {task.num_questions} | {shares} |"


def _share(row: FormatQuality, index: int) -> str:
    """Correct answers, and valid ones where these are fewer than all."""
    task = row.tasks[index]
    invalid = "" if task.valid == 1 else f" ({task.valid:.0%} valid)"
    return f"{task.correct:.0%}{invalid}"
