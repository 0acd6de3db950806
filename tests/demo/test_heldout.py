"""Compares the questions that the package ships with what the generator makes of the eval split."""

from __future__ import annotations

from demo.heldout import render
from fathom.engine.heldout import embedded_heldout


def test_the_shipped_questions_are_the_generators() -> None:
    assert embedded_heldout().read_text(encoding="utf-8") == render(), (
        "run: python -m demo.heldout > src/fathom/weights/embedded/heldout.jsonl"
    )
