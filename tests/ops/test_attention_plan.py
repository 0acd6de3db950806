"""Checks the plan of the reference attention against the rules that it states."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fathom.ops.cases import V3_MLA
from fathom.ops.reference_attention import padded_length, prefers_absorbed


@given(st.integers(1, 10**6))
def test_padding_is_at_most_a_quarter_and_settles(length: int) -> None:
    padded = padded_length(length)
    assert length <= padded <= 1.25 * length
    assert padded_length(padded) == padded
    assert padded_length(length + 1) >= padded


def test_decode_is_absorbed_and_prefill_is_not() -> None:
    assert prefers_absorbed(1, 2, V3_MLA)
    assert prefers_absorbed(4, 100_000, V3_MLA)
    assert prefers_absorbed(30, 4096, V3_MLA)
    assert not prefers_absorbed(30, 30, V3_MLA)
    assert not prefers_absorbed(2048, 2048, V3_MLA)
    assert not prefers_absorbed(2048, 100_000, V3_MLA)
