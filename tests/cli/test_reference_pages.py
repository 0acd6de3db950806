"""Compares the reference pages with the tables that they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fathom import errors
from fathom.commands.reference import render, render_bench
from fathom.errors import FathomError, RequestError
from fathom.server.openai.schema import ChatRequest, CompletionRequest
from fathom.server.routes import ROUTES

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_flags_is_fresh() -> None:
    assert (PAGES / "flags.md").read_text(encoding="utf-8") == render(), (
        "run: python -m fathom.commands.reference > docs/reference/flags.md"
    )


def test_the_page_of_the_benchmarks_is_fresh() -> None:
    assert (PAGES / "bench.md").read_text(encoding="utf-8") == render_bench(), (
        "run: python -m fathom.commands.reference bench > docs/reference/bench.md"
    )


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_the_page_of_the_api_has_every_field(kind: type[ChatRequest]) -> None:
    words = set(re.findall(r"`(\w+)`", (PAGES / "api.md").read_text(encoding="utf-8")))
    assert set(kind.__struct_fields__) <= words


def test_the_page_of_the_api_has_every_route() -> None:
    text = (PAGES / "api.md").read_text(encoding="utf-8")
    for route in ROUTES:
        assert f"`{route.method} {route.path.replace(':path', '')}`" in text


def test_the_page_of_the_api_has_every_code_of_a_request() -> None:
    text = (PAGES / "api.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, RequestError)}
    codes |= {FathomError.code, errors.OverloadedError.code, errors.UnavailableError.code}
    assert all(f"`{code}`" in text for code in codes)
