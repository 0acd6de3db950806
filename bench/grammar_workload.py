"""What the grammar benchmarks write: schemas with answers, and a vocabulary of V3's size."""

from __future__ import annotations

import inspect
import json
import statistics
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fathom.text.tokenizer import Tokenizer

WORKLOAD: list[tuple[dict[str, Any], Any]] = [
    (
        {"type": "object", "properties": {"first_name": {"type": "string", "maxLength": 24},
         "last_name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "minimum": 0,
         "maximum": 150}, "kind": {"enum": ["customer", "supplier"]}},
         "required": ["first_name", "last_name", "age", "kind"], "additionalProperties": False},
        {"first_name": "Ada", "last_name": "Lovelace", "age": 36, "kind": "customer"},
    ),
    (
        {"type": "object", "properties": {"city": {"type": "string", "maxLength": 24},
         "unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer", "minimum": 1,
         "maximum": 14}}, "required": ["city", "unit", "days"], "additionalProperties": False},
        {"city": "San Francisco", "unit": "celsius", "days": 3},
    ),
    (
        {"type": "object", "properties": {"items": {"type": "array", "minItems": 2, "maxItems": 4,
         "items": {"type": "object", "properties": {"product_name": {"type": "string",
         "maxLength": 16}, "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
         "in_stock": {"type": "boolean"}}, "required": ["product_name", "quantity", "in_stock"],
         "additionalProperties": False}}}, "required": ["items"], "additionalProperties": False},
        {"items": [{"product_name": "lamp", "quantity": 2, "in_stock": True},
                   {"product_name": "chair", "quantity": 4, "in_stock": False}]},
    ),
    (
        {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"},
         "created": {"type": "string", "format": "date-time"}, "email": {"type": "string",
         "pattern": "^[a-z]{1,12}@[a-z]{1,12}\\.org$"}}, "required": ["id", "created", "email"],
         "additionalProperties": False},
        {"id": "123e4567-e89b-42d3-a456-426614174000", "created": "2026-01-02T03:04:05Z",
         "email": "someone@example.org"},
    ),
    ({"type": "object"}, {"a": [1, 2.5, None], "b": {"c": "text of some length, with words"}}),
]  # fmt: skip


def large_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of about `vocab_size` tokens in a checkpoint's form."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(inspect.__file__).parent.glob("**/*.py"))
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in sources)
    model.train_from_iterator(texts, trainer)
    model.add_special_tokens([tokenizers.AddedToken("<eos>", normalized=False)])
    directory.mkdir(exist_ok=True)
    model.save(str(directory / "tokenizer.json"))
    eos = {"eos_token_id": model.token_to_id("<eos>"), "vocab_size": model.get_vocab_size()}
    (directory / "config.json").write_text(json.dumps(eos))
    return Tokenizer.load(directory)


def told(samples: list[float]) -> dict[str, float]:
    """Median, p90 and the largest."""
    cuts = statistics.quantiles(samples, n=10)
    return {
        "median": round(statistics.median(samples), 3),
        "p90": round(cuts[-1], 3),
        "max": round(max(samples), 3),
        "count": len(samples),
    }
