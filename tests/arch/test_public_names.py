"""Pins the public surface: what `import fathom` offers, and that it stays light."""

from __future__ import annotations

import subprocess
import sys

import fathom


def test_exported_names() -> None:
    assert fathom.__all__ == ["LLM", "SamplingParams", "__version__"]


def test_import_loads_neither_torch_nor_a_web_framework() -> None:
    code = (
        "import sys, fathom, fathom.errors, fathom.config\n"
        "heavy = {'torch', 'numpy', 'uvicorn', 'tokenizers', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
