"""Ops on rows of logits by the CPU kernels: edits, sampling, log-probabilities."""

from __future__ import annotations

import torch

from fathom.ops import reference_sampling
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.checks import pointer, rows_of
from fathom.ops.sampling import Biases, LogitEdits, Logprobs, Penalties, SamplingRows

_FLOAT, _INT = torch.float32, torch.int64
_Place = tuple[int, int, int, int]  # address, stride, rows, vocabulary


class CpuLogits:
    """The ops on logits of `Backend`; a wrong dtype, shape or layout raises EngineError."""

    def mask_logits(self, logits: torch.Tensor, edits: LogitEdits) -> None:
        """See `Backend.mask_logits`."""
        place = _place(logits)
        if edits.allowed is not None:
            stride = rows_of(edits.allowed, torch.uint8, "allowed")
            wanted = (logits.shape[0], (logits.shape[1] + 7) // 8)
            if edits.allowed.shape != wanted:
                pointer(edits.allowed, torch.uint8, wanted, "allowed")
            kernels = library.load()
            library.check(kernels.fathom_mask(*place, edits.allowed.data_ptr(), stride))
        if edits.biases is not None:
            _add_biases(place, edits.biases)
        if edits.penalties is not None:
            _penalize(place, edits.penalties)

    def largest(self, logits: torch.Tensor) -> torch.Tensor:
        """See `Backend.largest`."""
        out = torch.empty(logits.shape[0], dtype=_FLOAT)
        library.check(library.load().fathom_largest(*_place(logits), out.data_ptr()))
        return out

    def sample(self, logits: torch.Tensor, sampling: SamplingRows) -> torch.Tensor:
        """See `Backend.sample`.

        A row costs one pass over its logits where it is greedy or top_k is at most 1,024, else one
        more for the sum of all weights, and seldom a third.
        """
        place, size = _place(logits), sampling.rows.shape
        out = torch.empty(logits.shape[0], dtype=_INT)
        failed = library.load().fathom_sample(
            *place,
            size.numel(),
            pointer(sampling.rows, _INT, size, "rows"),
            pointer(sampling.temperature, _FLOAT, size, "temperature"),
            pointer(sampling.top_k, _INT, size, "top_k"),
            pointer(sampling.top_p, _FLOAT, size, "top_p"),
            pointer(sampling.min_p, _FLOAT, size, "min_p"),
            pointer(sampling.uniform, torch.float64, size, "uniform"),
            out.data_ptr(),
        )
        library.check(failed)
        return out

    def token_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, *, top: int) -> Logprobs:
        """See `Backend.token_logprobs`."""
        place, rows = _place(logits), logits.shape[0]
        out = Logprobs(
            chosen=torch.empty(rows, dtype=_FLOAT),
            rank=torch.empty(rows, dtype=_INT),
            top_ids=torch.empty((rows, top), dtype=_INT),
            top=torch.empty((rows, top), dtype=_FLOAT),
        )
        failed = library.load().fathom_token_logprobs(
            *place,
            pointer(tokens, _INT, (rows,), "tokens"),
            top,
            out.chosen.data_ptr(),
            out.rank.data_ptr(),
            out.top_ids.data_ptr(),
            out.top.data_ptr(),
        )
        library.check(failed)
        return out

    def verify(
        self, samples: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
    ) -> torch.Tensor:
        """See `Backend.verify`: a few integers, which torch does well."""
        return reference_sampling.verify(samples, drafts, num_drafts)


def _place(logits: torch.Tensor) -> _Place:
    stride = rows_of(logits, _FLOAT, "logits")
    rows, vocab = logits.shape
    return logits.data_ptr(), stride, rows, vocab


def _add_biases(place: _Place, biases: Biases) -> None:
    size = biases.rows.shape
    failed = library.load().fathom_add_biases(
        *place,
        size.numel(),
        pointer(biases.rows, _INT, size, "rows of biases"),
        pointer(biases.ids, _INT, size, "ids of biases"),
        pointer(biases.values, _FLOAT, size, "values of biases"),
    )
    library.check(failed)


def _penalize(place: _Place, penalties: Penalties) -> None:
    size, rows = penalties.rows.shape, (place[2],)
    failed = library.load().fathom_penalize(
        *place,
        size.numel(),
        pointer(penalties.rows, _INT, size, "rows of penalties"),
        pointer(penalties.ids, _INT, size, "ids of penalties"),
        pointer(penalties.counts, _INT, size, "counts of penalties"),
        pointer(penalties.repetition, _FLOAT, rows, "repetition"),
        pointer(penalties.presence, _FLOAT, rows, "presence"),
        pointer(penalties.frequency, _FLOAT, rows, "frequency"),
    )
    library.check(failed)
