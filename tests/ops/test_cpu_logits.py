"""Compares the CPU kernels on logits and rows with the float64 oracle and the reference backend."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import EngineError
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.cases import V3_MOE, Case, all_cases
from fathom.ops.reference import ReferenceBackend
from fathom.ops.sampling import SamplingRows
from tests.ops.op_conformance import check

CPU = torch.device("cpu")
LOGIT_OPS = ("mask_logits", "largest", "sample", "token_logprobs", "verify")
BFLOAT16_OPS = ("rope", "silu_mul")

ISAS = [
    name
    for name in ("avx2", "avx512", "amx")
    if library.PATH.is_file() and library.load().fathom_choose_isa(name.encode())
]
assert ISAS, "no CPU kernels: install g++, then run pip install again"


OPS, REFERENCE = CpuBackend(), ReferenceBackend()


def start_threads(count: int) -> None:
    assert library.load().fathom_start_threads(count, (ctypes.c_int * count)(*[-1] * count))


@pytest.fixture(scope="module", autouse=True, params=ISAS)
def each_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs with every instruction set of this machine; the best stays chosen."""
    assert library.load().fathom_choose_isa(request.param.encode())
    yield
    start_threads(1)
    library.load().fathom_choose_isa(ISAS[-1].encode())


def is_taken(case: Case) -> bool:
    if case.op in BFLOAT16_OPS:
        return case.dtype == "bfloat16"
    return case.op in (*LOGIT_OPS, "embed", "route")


@pytest.mark.parametrize("case", list(filter(is_taken, all_cases())), ids=lambda case: case.id)
def test_cases(case: Case) -> None:
    check(OPS, case, CPU)


def sampling_of(draws: list[tuple[float, int, float, float, float]]) -> SamplingRows:
    """Rows of (temperature, top_k, top_p, min_p, uniform)."""
    temperature, top_k, top_p, min_p, uniform = zip(*draws, strict=True)
    return SamplingRows(
        rows=torch.arange(len(draws)),
        temperature=torch.tensor(temperature),
        top_k=torch.tensor(top_k),
        top_p=torch.tensor(top_p),
        min_p=torch.tensor(min_p),
        uniform=torch.tensor(uniform, dtype=torch.float64),
    )


def borders(logits: torch.Tensor, sampling: SamplingRows) -> bool:
    """Whether a filter or the uniform falls on a token's border, where rounding decides."""
    for row in range(len(logits)):
        ordered = logits[row].double().sort(descending=True).values
        weights = ((ordered - ordered[0]) / sampling.temperature[row].double()).exp()
        min_p, top_p = float(sampling.min_p[row]), float(sampling.top_p[row])
        if ((weights - min_p).abs() < 1e-9).any() and 0 < min_p < 1:
            return True
        top_k = int(sampling.top_k[row]) or len(weights)
        weights = weights[:top_k][weights[:top_k] >= min_p]
        shares = weights.cumsum(0) / weights.sum()
        if top_p < 1 and ((shares - top_p).abs() < 1e-9).any():
            return True
        kept = int((shares - weights / weights.sum() < top_p).sum())
        shares = shares[:kept] / shares[kept - 1]
        uniform = float(sampling.uniform[row])
        if ((shares - uniform).abs() < 1e-9).any():
            return True
    return False


DRAWS = st.tuples(
    st.sampled_from([0.05, 0.3, 1.0, 1.7, 30.0]),
    st.sampled_from([0, 1, 2, 50, 1024, 1025, 3000, 10**6]),
    st.sampled_from([1e-9, 0.2, 0.9, 0.95, 1.0]),
    st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0]),
    st.floats(0, 1, exclude_max=True),
)


def make_logits(rows: int, vocab: int, seed: int, spread: float, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * spread
    if kind == "ties":
        logits = (logits / spread * 2).round() / 2 * spread
    if kind == "masked":
        logits[torch.rand(rows, vocab, generator=generator) < 0.9] = -math.inf
        logits[:, vocab // 2] = 0.0
    if kind == "ordered":
        logits = logits.sort(dim=-1, descending=True).values.contiguous()
    return logits


@settings(max_examples=150, deadline=None)
@given(
    st.lists(DRAWS, min_size=1, max_size=6),
    st.sampled_from([1, 2, 15, 16, 130, 1000, 2049, 20_000]),
    st.integers(0, 2**31),
    st.sampled_from([0.01, 1.0, 4.0, 1e4]),
    st.sampled_from(["plain", "ties", "masked", "ordered"]),
)
def test_sample_takes_the_reference_s_token(
    choices: list[tuple[float, int, float, float, float]],
    vocab: int,
    seed: int,
    spread: float,
    kind: str,
) -> None:
    logits = make_logits(len(choices), vocab, seed, spread, kind)
    sampling = sampling_of(choices)
    got = OPS.sample(logits, sampling)
    if not borders(logits, sampling):
        assert got.equal(REFERENCE.sample(logits, sampling))
    start_threads(2)
    assert OPS.sample(logits, sampling).equal(got)
    start_threads(1)
    for row in range(len(choices)):
        alone = OPS.sample(logits[row : row + 1], sampling_of(choices[row : row + 1]))
        assert alone[0] == got[row]


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0, 9.0])
def test_sample_from_a_whole_vocabulary(spread: float) -> None:
    """Heads of one token to most of a vocabulary, against the reference."""
    choices = [
        (temperature, top_k, top_p, min_p, uniform)
        for temperature, uniform in ((0.6, 0.93), (1.0, 0.41), (1.5, 0.9997))
        for top_k, top_p, min_p in (
            *((0, 1.0, 0.0), (0, 0.95, 0.0), (0, 1.0, 0.001)),
            *((50, 0.95, 0.0), (9000, 0.5, 0.0), (100_000, 1.0, 0.0)),
        )
    ]
    logits = make_logits(len(choices), 129_280, 17, spread, "plain")
    sampling = sampling_of(choices)
    assert not borders(logits, sampling)
    assert OPS.sample(logits, sampling).equal(REFERENCE.sample(logits, sampling))


@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (0, 0.9, 0.0), (40, 1.0, 0.0), (0, 1.0, 0.05)])
def test_shares_are_the_filtered_softmax(filters: tuple[int, float, float]) -> None:
    """Chi-square of 20,000 draws against the probabilities in float64; the limit is six sigma."""
    logits = make_logits(1, 3000, 5, 1.5, "plain")
    count = 20_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.cat(
        [
            OPS.sample(
                logits.expand(500, -1).contiguous(), sampling_of([(1.0, *filters, u) for u in part])
            )
            for part in uniform.view(-1, 500).tolist()
        ]
    )
    top_k, top_p, min_p = filters
    probs, ids = logits[0].double().softmax(0).sort(descending=True)
    probs[top_k or len(probs) :] = 0
    probs[probs < min_p * probs[0]] = 0
    probs = probs / probs.sum()
    probs[probs.cumsum(0) - probs >= top_p] = 0
    probs = probs / probs.sum()
    wanted = torch.zeros(3000, dtype=torch.float64).scatter_(0, ids, probs) * count
    seen = torch.bincount(tokens, minlength=3000).double()
    assert (seen[wanted == 0] == 0).all()
    is_common = wanted >= 5
    rare = wanted[~is_common].sum()
    squares = ((seen - wanted)[is_common] ** 2 / wanted[is_common]).sum()
    if rare > 5:
        squares += (seen[~is_common].sum() - rare) ** 2 / rare
    freedom = int(is_common.sum()) + int(rare > 5) - 1
    assert abs(float(squares) - freedom) < 6 * math.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 16, 129, 2049, 20_000]),
    st.integers(0, 2**31),
    st.sampled_from([0.01, 4.0, 1e4]),
    st.sampled_from(["plain", "ties", "masked", "ordered"]),
    st.sampled_from([0, 1, 5, 100, 4000]),
)
def test_logprobs_are_those_of_float64_and_ranks_the_reference_s(
    rows: int, vocab: int, seed: int, spread: float, kind: str, top: int
) -> None:
    logits = make_logits(rows, vocab, seed, spread, kind)
    tokens = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    top = min(top, vocab)
    got = OPS.token_logprobs(logits, tokens, top=top)
    wanted = REFERENCE.token_logprobs(logits, tokens, top=top)
    assert got.rank.equal(wanted.rank)
    assert got.top_ids.equal(wanted.top_ids)
    # In float64: the reference's float32 loses the digits of the sum beside logits of 1e4.
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(got.chosen, exact.gather(1, tokens[:, None])[:, 0].float())
    torch.testing.assert_close(got.top, exact.gather(1, got.top_ids).float())
    alone = OPS.token_logprobs(logits[:1], tokens[:1], top=top)
    assert alone.chosen.equal(got.chosen[:1])
    assert alone.top.equal(got.top[:1])


def test_greedy_takes_the_first_of_the_largest() -> None:
    none = sampling_of([(1.0, 0, 1.0, 0.0, 0.0)])
    none = SamplingRows(*(getattr(none, name)[:0] for name in none.__slots__))
    for vocab in (1, 17, 1024, 129_280):
        for kind in ("plain", "ties", "masked"):
            logits = make_logits(5, vocab, vocab, 3.0, kind)
            assert OPS.sample(logits, none).equal(logits.argmax(-1))
            assert OPS.largest(logits).equal(logits.amax(-1))
    zeros = torch.tensor([[-1.0, -0.0, 0.0, 0.0]])
    assert OPS.sample(zeros, none).tolist() == [1]


def test_rows_without_a_finite_logit_stay_in_the_vocabulary() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.zeros(5, 3000)
    logits[1], logits[2], logits[3, 7], logits[4, 5:] = nan, -inf, inf, nan
    for filters in ((0, 1.0, 0.0), (50, 0.9, 0.0), (2000, 0.9, 0.0)):
        for uniform in (0.0, 0.5, 1 - 2.0**-53):
            tokens = OPS.sample(logits, sampling_of([(1.0, *filters, uniform)] * 5))
            assert ((tokens >= 0) & (tokens < 3000)).all()
    found = OPS.token_logprobs(logits, torch.zeros(5, dtype=torch.int64), top=100)
    assert ((found.top_ids >= 0) & (found.top_ids < 3000)).all()
    assert found.chosen.isnan().tolist() == [False, True, True, False, True]
    assert OPS.largest(logits).isnan().tolist() == [False, True, False, False, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.sampled_from([8, 31, 48, 1024]), st.integers(0, 2**31))
def test_route_does_not_depend_on_the_batch(tokens: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator).bfloat16()
    weight = torch.randn(256, width, generator=generator).bfloat16()
    bias = torch.randn(256, generator=generator) * 0.1
    ids, weights = OPS.route(x, weight, bias, V3_MOE)
    start_threads(2)
    again = OPS.route(x, weight, bias, V3_MOE)
    start_threads(1)
    assert again[0].equal(ids)
    assert again[1].equal(weights)
    for row in {0, tokens // 2, tokens - 1}:
        alone = OPS.route(x[row : row + 1], weight, bias, V3_MOE)
        assert alone[0].equal(ids[row : row + 1])
        assert alone[1].equal(weights[row : row + 1])
    assert ids.sort(dim=1).values.diff(dim=1).gt(0).all()


def test_rope_takes_slices_of_heads() -> None:
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(5, 3, 192, generator=generator).bfloat16()
    angles = torch.randn(5, 32, generator=generator)
    for interleaved in (False, True):
        args = wide[..., 128:], angles.cos(), angles.sin()
        assert OPS.rope(*args, interleaved=interleaved).equal(
            REFERENCE.rope(*args, interleaved=interleaved)
        )


def test_wrong_tensors_are_refused() -> None:
    logits = torch.zeros(2, 64)
    sampling = sampling_of([(1.0, 0, 1.0, 0.0, 0.5)] * 2)
    with pytest.raises(EngineError, match="logits of a CPU kernel"):
        OPS.sample(logits.double(), sampling)
    with pytest.raises(EngineError, match="logits of a CPU kernel"):
        OPS.sample(logits.T, sampling)
    with pytest.raises(EngineError, match=r"rows: 1, wanted 0 \.\. 0"):
        OPS.sample(logits[:1], sampling)
    with pytest.raises(EngineError, match="temperature"):
        OPS.sample(logits, sampling_of([(0.0, 0, 1.0, 0.0, 0.5)] * 2))
    with pytest.raises(EngineError, match=r"tokens: 64, wanted 0 \.\. 63"):
        OPS.token_logprobs(logits, torch.tensor([0, 64]), top=0)
    with pytest.raises(EngineError, match="router of a CPU kernel"):
        OPS.route(torch.zeros(1, 8).bfloat16(), torch.zeros(256, 9).bfloat16(), None, V3_MOE)
    with pytest.raises(EngineError, match="x of silu_mul"):
        OPS.silu_mul(torch.zeros(1, 8))
