"""Turns what each row of logits asks for into the tensors of the sampling ops.

Order, as in vLLM: mask, forbidden ids, logit bias, penalties; then greedy, or temperature and the
filters and a draw. A token is a pure function of (logits, parameters, seed, output position).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch

from fathom.core.types import SamplingParams, TokenLogprobs
from fathom.errors import EngineError
from fathom.ops.api import Backend
from fathom.ops.sampling import Biases, LogitEdits, Penalties, SamplingRows
from fathom.runtime.uniform import uniforms

# Below this a temperature is greedy, as in vLLM: the draw could no longer tell the difference.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What one row of logits asks for.

    `position` counts the output tokens before this one. `counts` says how often tokens occurred in
    the output (0: in the prompt only), for penalties; None where there are none. `forbidden` ids
    may not come, unless `mask` (packed bits of the allowed tokens) allows nothing else.
    """

    sampling: SamplingParams
    seed: int
    position: int
    counts: Mapping[int, int] | None = None
    forbidden: tuple[int, ...] = ()
    mask: bytes | None = None


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether the tokens so far change the next token's logits."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def sample_tokens(
    ops: Backend, logits: torch.Tensor, draws: SamplingRows, edits: LogitEdits | None
) -> torch.Tensor:
    """One token per row, [R] int64. `logits` [R, V] float32 are overwritten.

    Raises: EngineError where a row has no token to choose from: not a number, or all masked.
    """
    if edits is not None:
        ops.mask_logits(logits, edits)
    found = [best for best in ops.largest(logits).tolist() if not isfinite(best)]
    if found:
        raise EngineError(
            "logits without a token to choose",
            found=f"largest logits {found}",
            wanted="finite numbers, and masks that allow a token",
        )
    return ops.sample(logits, draws)


def raw_logprobs(
    ops: Backend, logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> tuple[TokenLogprobs, ...]:
    """Log-probabilities as the model gives them, before edits and temperature, one entry per row.

    Of `token_ids[r]`, and of the `num_top[r]` most likely tokens (-1: of all).
    """
    counts = [logits.shape[1] if n < 0 else min(n, logits.shape[1]) for n in num_top]
    chosen = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    found = ops.token_logprobs(logits, chosen, top=max(counts))
    rows = zip(
        token_ids,
        found.chosen.tolist(),
        found.rank.tolist(),
        found.top_ids.tolist(),
        found.top.tolist(),
        counts,
        strict=True,
    )
    return tuple(
        TokenLogprobs(token_id, logprob, rank, tuple(zip(ids[:n], scores[:n], strict=True)))
        for token_id, logprob, rank, ids, scores, n in rows
    )


def sampling_rows(rows: Sequence[SampleRow], device: torch.device) -> SamplingRows:
    """How rows are drawn. Depends on nothing that a step computes."""
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature >= _GREEDY_BELOW]
    if not drawn:
        return _nothing_drawn(device)
    params = [rows[i].sampling for i in drawn]
    points = uniforms([rows[i].seed for i in drawn], [rows[i].position for i in drawn])
    return SamplingRows(
        rows=_int_column(drawn, device),
        temperature=_float_column([p.temperature for p in params], device),
        top_k=_int_column([max(p.top_k, 0) for p in params], device),
        top_p=_float_column([p.top_p for p in params], device),
        min_p=_float_column([p.min_p for p in params], device),
        uniform=torch.from_numpy(points).to(device),
    )


@cache
def _nothing_drawn(device: torch.device) -> SamplingRows:
    """For steps whose rows are all greedy: six small tensors less to make."""
    ints, floats = _int_column([], device), _float_column([], device)
    return SamplingRows(ints, floats, ints, floats, floats, floats.double())


def logit_edits(
    rows: Sequence[SampleRow], vocab_size: int, device: torch.device
) -> LogitEdits | None:
    """What rows change in their logits; None where none of them asks for a change."""
    masks = _masks(rows, vocab_size, device)
    biases = _all_biases(rows, vocab_size, device)
    penalties = _penalties(rows, device)
    if masks is None and biases is None and penalties is None:
        return None
    return LogitEdits(masks, biases, penalties)


def _penalties(rows: Sequence[SampleRow], device: torch.device) -> Penalties | None:
    counts = [row.counts or {} for row in rows]
    if not any(counts):
        return None
    lengths = torch.tensor([len(count) for count in counts], device=device)
    params = [row.sampling for row in rows]
    return Penalties(
        rows=torch.arange(len(rows), device=device).repeat_interleave(lengths),
        ids=_int_column(list(chain(*counts)), device),
        counts=_int_column(list(chain(*(count.values() for count in counts))), device),
        repetition=_float_column([p.repetition_penalty for p in params], device),
        presence=_float_column([p.presence_penalty for p in params], device),
        frequency=_float_column([p.frequency_penalty for p in params], device),
    )


def _all_biases(rows: Sequence[SampleRow], vocab_size: int, device: torch.device) -> Biases | None:
    cells = [(i, *pair) for i, row in enumerate(rows) for pair in _biases(row, vocab_size)]
    if not cells:
        return None
    return Biases(
        rows=_int_column([row for row, _, _ in cells], device),
        ids=_int_column([token_id for _, token_id, _ in cells], device),
        values=_float_column([bias for _, _, bias in cells], device),
    )


def _biases(row: SampleRow, vocab_size: int) -> list[tuple[int, float]]:
    """What to add to which logits. Ids that are no tokens can not come, and need nothing."""
    has_mask = row.mask is not None or row.sampling.allowed_token_ids is not None
    forbidden = () if has_mask else row.forbidden
    pairs = chain(((token_id, -np.inf) for token_id in forbidden), row.sampling.logit_bias.items())
    return [(token_id, bias) for token_id, bias in pairs if 0 <= token_id < vocab_size]


def _allowed(row: SampleRow, vocab_size: int) -> npt.NDArray[np.uint8] | None:
    """The packed mask of a row; less what is not allowed, and less the forbidden ids, each where
    something remains."""
    ids = row.sampling.allowed_token_ids
    if row.mask is None and ids is None:
        return None
    mask = _bits(ids or (), vocab_size)
    if row.mask is not None:
        of_form = np.frombuffer(row.mask, dtype=np.uint8)
        both = mask[: len(of_form)] & of_form[: len(mask)]
        mask = both if both.any() else of_form
    kept = mask.copy()
    for token_id in row.forbidden:
        if 0 <= token_id < min(vocab_size, len(kept) * 8):
            kept[token_id // 8] &= 0xFF ^ (1 << (token_id % 8))
    return kept if kept.any() else mask


@lru_cache(64)
def _bits(ids: tuple[int, ...], vocab_size: int) -> npt.NDArray[np.uint8]:
    """A mask that allows `ids`."""
    bits = np.zeros(-(-vocab_size // 8) * 8, dtype=np.uint8)
    bits[[token_id for token_id in ids if token_id < vocab_size]] = 1
    return np.packbits(bits, bitorder="little")


def _masks(rows: Sequence[SampleRow], vocab_size: int, device: torch.device) -> torch.Tensor | None:
    masks = [_allowed(row, vocab_size) for row in rows]
    if all(mask is None for mask in masks):
        return None
    stacked = np.full((len(masks), -(-vocab_size // 8)), 0xFF, dtype=np.uint8)
    for line, mask in zip(stacked, masks, strict=True):
        if mask is not None:
            line[:] = mask
    return torch.from_numpy(stacked).to(device)


def _int_column(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _float_column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
