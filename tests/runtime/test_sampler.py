"""Compares sampling with an independent implementation in numpy, and draws with probabilities."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.types import SamplingParams
from fathom.errors import EngineError
from fathom.ops.reference import ReferenceBackend
from fathom.runtime.sampler import (
    SampleRow,
    has_penalties,
    logit_edits,
    raw_logprobs,
    sample_tokens,
    sampling_rows,
)
from fathom.runtime.uniform import uniforms

OPS = ReferenceBackend()
V = 21


def _sample(logits: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    edits = logit_edits(rows, V, logits.device)
    return sample_tokens(OPS, logits, sampling_rows(rows, logits.device), edits)


def _naive_edit(logits: np.ndarray, row: SampleRow) -> np.ndarray:
    """vLLM's order, one token at a time in float64."""
    out = logits.astype(np.float64)
    forbidden, ids = set(row.forbidden), row.sampling.allowed_token_ids
    if row.mask is not None or ids is not None:
        allowed = set(range(V)) if ids is None else {*ids} & {*range(V)}
        if row.mask is not None:
            of_form = {t for t in range(V) if row.mask[t // 8] >> (t % 8) & 1}
            allowed = allowed & of_form or of_form
        allowed = allowed - forbidden or allowed
        forbidden = set(range(V)) - allowed
    for token in range(V):
        if token in forbidden:
            out[token] = -np.inf
        out[token] += row.sampling.logit_bias.get(token, 0.0)
        count = (row.counts or {}).get(token)
        if count is None:
            continue
        penalty = row.sampling.repetition_penalty
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
        if count > 0:
            out[token] -= row.sampling.presence_penalty
            out[token] -= row.sampling.frequency_penalty * count
    return out


def _naive_distribution(logits: np.ndarray, p: SamplingParams) -> dict[int, float]:
    """Kept tokens, most likely first, with their probabilities."""
    scaled = logits / p.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(V), key=lambda t: (-probs[t], t))
    kept = [t for t in order if probs[t] > 0]
    if p.top_k > 0:
        kept = kept[: p.top_k]
    kept = [t for t in kept if probs[t] >= p.min_p * probs[order[0]]]
    total = sum(probs[t] for t in kept)
    head, mass = [], 0.0
    for token in kept:
        head.append(token)
        mass += probs[token] / total
        if mass >= p.top_p:
            break
    total = sum(probs[t] for t in head)
    return {t: probs[t] / total for t in head}


def _naive_sample(logits: np.ndarray, row: SampleRow) -> int | None:
    """The token; None where it hangs on the last bits of a float."""
    edited = _naive_edit(logits, row)
    if row.sampling.temperature == 0:
        best = np.flatnonzero(edited > edited.max() - 1e-5)
        return int(best[0]) if len(best) == 1 else None
    point = uniforms([row.seed], [row.position])[0]
    distribution = _naive_distribution(edited, row.sampling)
    edges = np.cumsum(list(distribution.values()))
    if np.abs(edges - point).min() < 1e-6 and len(edges) > 1:
        return None
    return list(distribution)[int(np.searchsorted(edges, point, side="right"))]


def _params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        top_k=draw(st.sampled_from([0, 1, 3, V, 1000])),
        top_p=draw(st.sampled_from([1.0, 0.37, 0.93, 1e-3])),
        min_p=draw(st.sampled_from([0.0, 0.21])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -1.1])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4, -0.3])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.6, 0.8])),
        logit_bias=draw(st.dictionaries(st.integers(0, V + 3), st.floats(-9, 9), max_size=3)),
        allowed_token_ids=draw(
            st.none() | st.sets(st.integers(0, V - 1), min_size=1).map(lambda ids: tuple(ids))
        ),
    )


@st.composite
def _rows(draw: st.DrawFn) -> SampleRow:
    sampling = _params(draw)
    counts = None
    if has_penalties(sampling):
        counts = draw(st.dictionaries(st.integers(0, V - 1), st.integers(0, 4), max_size=6))
    mask = None
    if draw(st.booleans()):
        allowed = draw(st.sets(st.integers(0, V - 1), min_size=1))
        bits = np.zeros(V, dtype=np.uint8)
        bits[list(allowed)] = 1
        mask = np.packbits(bits, bitorder="little").tobytes()
    return SampleRow(
        sampling=sampling,
        seed=draw(st.integers(0, 2**63)),
        position=draw(st.integers(0, 5000)),
        counts=counts,
        forbidden=tuple(draw(st.sets(st.integers(0, V + 3), max_size=3))),
        mask=mask,
    )


def _logits(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, V)).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(_rows(), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_tokens_equal_the_naive_implementation(rows: list[SampleRow], seed: int) -> None:
    logits = _logits(seed, len(rows))
    tokens = _sample(torch.from_numpy(logits.copy()), rows).tolist()
    for token, row, line in zip(tokens, rows, logits, strict=True):
        expected = _naive_sample(line, row)
        assert expected is None or token == expected


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(_rows(), min_size=2, max_size=5), seed=st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_batch(rows: list[SampleRow], seed: int) -> None:
    logits = torch.from_numpy(_logits(seed, len(rows)))
    together = _sample(logits.clone(), rows).tolist()
    alone = [int(_sample(logits[i : i + 1].clone(), [row])) for i, row in enumerate(rows)]
    assert together == alone


def test_draws_follow_the_filtered_distribution() -> None:
    """Chi-square of 4,000 draws at positions of one seed; each row has its own position."""
    count = 4000
    for seed, sampling in enumerate(
        (
            SamplingParams(temperature=1.0),
            SamplingParams(temperature=0.7, top_k=6),
            SamplingParams(temperature=1.3, top_p=0.8),
            SamplingParams(temperature=1.0, min_p=0.05, top_p=0.95, top_k=10),
        )
    ):
        line = np.random.default_rng(seed).normal(0, 1.5, V).astype(np.float32)
        rows = [SampleRow(sampling, seed, position) for position in range(count)]
        tokens = _sample(torch.from_numpy(np.tile(line, (count, 1))), rows)
        found = Counter(tokens.tolist())
        expected = _naive_distribution(line.astype(np.float64), sampling)
        assert set(found) <= set(expected)
        statistic = sum(
            (found[t] - count * share) ** 2 / (count * share) for t, share in expected.items()
        )
        freedom = len(expected) - 1
        assert (statistic - freedom) / np.sqrt(2 * freedom) < 4


def test_plain_greedy_rows_are_not_edited() -> None:
    """The usual case must leave the logits as they are: nothing is built for it."""
    logits = torch.from_numpy(_logits(0, 3))
    before = logits.clone()
    rows = [SampleRow(SamplingParams(temperature=0.0), 0, i) for i in range(3)]
    assert _sample(logits, rows).tolist() == before.argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_forbidden_ids_yield_to_a_mask_that_allows_nothing_else() -> None:
    """min_tokens with a grammar that is at its end: the end comes, rather than nonsense."""
    mask = np.packbits(np.arange(V) == 5, bitorder="little").tobytes()
    row = SampleRow(SamplingParams(temperature=0.0), 0, 0, forbidden=(5,), mask=mask)
    assert _sample(torch.from_numpy(_logits(1, 1)), [row]).tolist() == [5]


@pytest.mark.parametrize("broken", ["nan", "mask"])
def test_a_row_without_a_choice_is_an_error(broken: str) -> None:
    logits = torch.from_numpy(_logits(2, 2))
    mask = None
    if broken == "nan":
        logits[1, 3] = torch.nan
    else:
        mask = bytes((V + 7) // 8)
    row = SampleRow(SamplingParams(), 0, 0, mask=mask)
    with pytest.raises(EngineError, match="without a token to choose"):
        _sample(logits, [row, row])


def test_raw_logprobs_equal_numpy() -> None:
    logits = _logits(3, 4)
    logits[0, 4] = logits[0, 9] = logits[0].max() + 1  # equal best: the lower id goes first
    chosen, tops = [9, 0, 7, 20], [3, 0, -1, V + 5]
    found = raw_logprobs(OPS, torch.from_numpy(logits), chosen, tops)
    wide = logits.astype(np.float64)
    scores = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    for line, token, top, entry in zip(scores, chosen, tops, found, strict=True):
        order = sorted(range(V), key=lambda t: (-line[t], t))
        assert entry.token_id == token
        assert entry.rank == order.index(token) + 1
        np.testing.assert_allclose(entry.logprob, line[token], atol=1e-5)
        assert [t for t, _ in entry.top] == order[: top if 0 <= top <= V else V]
        np.testing.assert_allclose(
            [s for _, s in entry.top], line[order[: len(entry.top)]], atol=1e-5
        )
