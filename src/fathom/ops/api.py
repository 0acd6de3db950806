"""The op contracts: what every backend computes, with shapes, dtypes and what is written.

Few and coarse on purpose: a backend can fuse all that one call covers. Letters: T tokens, S
sequences, H heads of this rank, E experts, I this rank's part of an expert's inner width, V rows
of the vocabulary. x, weights and caches share one dtype (float32 or bfloat16) unless said
otherwise; results are new tensors of x's dtype and device unless an op says what it writes.
Arguments are trusted: the model checks shapes once, when it is built. `tests/ops` checks
every backend against float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fathom.ops.batch import PagedBatch
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.sampling import LogitEdits, Logprobs, SamplingRows
from fathom.spec.formats import Format
from fathom.spec.model import Mla, Moe

Weight = torch.Tensor | QTensor | PackedInt4
# A weight as a backend keeps it: what its `hold` gave. Nobody else looks into it.
Held = object


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm: see `Backend.rms_norm`. Shapes: weight [D]."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Angles:
    """Angles of a step's tokens, and which values they turn: see `Backend.rope`.

    Shapes: cos and sin [T, Dr / 2] float32.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    is_interleaved: bool


class Backend(Protocol):
    """One implementation of all ops."""

    @property
    def name(self) -> str:
        """What settings and reports call it."""
        ...

    def hold(
        self,
        parts: Sequence[Weight],
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> Held:
        """Matrices of equal width, one under the other, as this backend keeps them for `linear`.

        Called once, when a model is built. The parts may be views of a mapped file: what is kept
        is a copy. Plain parts are kept in `dtype`; `format`: quantised to it instead. `is_gated`:
        the first half of the rows is a gate, the second an up-projection, for `mlp`.
        """
        ...

    def hold_experts(
        self,
        experts: Iterable[Sequence[Weight]],
        count: int,
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> Held:
        """The same for `count` experts, each of which gives the parts of one matrix; they are asked
        for one after the other, so that only one needs to be in memory beside the result."""
        ...

    def hold_kv_b(
        self, kv_b: Weight, mla: Mla, *, dtype: torch.dtype, format: Format | None = None
    ) -> Held:
        """The up-projections of keys and values [H * (Dn + Dv), R] for `mla_attend`."""
        ...

    def embed(
        self, token_ids: torch.Tensor, weight: torch.Tensor, *, first_id: int = 0
    ) -> torch.Tensor:
        """Rows of an embedding table [T, D].

        Shapes: token_ids [T] int64; weight [V, D], the rows of tokens first_id .. first_id + V.
        Tokens outside them give zeros, so that the ranks' results add up to the whole.
        """
        ...

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension, the mean in float32.

        Shapes: x [..., D]; weight [D]; residual like x. Where `residual` is given, x is added to it
        IN PLACE, and the sum is normalised instead of x.
        Source: https://arxiv.org/abs/1910.07467
        """
        ...

    def rope(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
    ) -> torch.Tensor:
        """Rotates each pair of x by its angle, in float32.

        Shapes: x [T, D] or [T, H, D]; cos and sin [T, D / 2] float32. Pairs are (2i, 2i + 1)
        where interleaved, else (i, i + D / 2); results stand where their inputs stood.
        Source: https://arxiv.org/abs/2104.09864
        """
        ...

    def linear(
        self,
        x: torch.Tensor,
        weight: Held,
        *,
        norm: Norm | None = None,
        residual: torch.Tensor | None = None,
        is_wide: bool = False,
    ) -> torch.Tensor:
        """x @ weight.T. Shapes: x [T, K]; weight [N, K] from `hold`; result [T, N].

        `norm`: rms_norm(x, residual=residual) is taken instead of x; `residual` wants a norm.
        `is_wide`: the result is float32, not rounded to x's dtype where the backend can.
        """
        ...

    def mlp(self, x: torch.Tensor, gate_up: Held, down: Held) -> torch.Tensor:
        """down(silu(gate x) * up x): [T, D]. Shapes: gate_up [2I, D], gated; down [D, I]."""
        ...

    def quantize_rows(self, x: torch.Tensor) -> QTensor:
        """x [T, K] in FP8 with one scale for each 128 columns of a row (format FP8_ROWS).

        Source: DeepSeek-V3 report, section 3.3.2.
        """
        ...

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half of the last dimension: [..., 2I] to [..., I]."""
        ...

    def mla_write(
        self,
        cache: torch.Tensor,
        slots: torch.Tensor,
        latent: torch.Tensor,
        key_rope: torch.Tensor,
        *,
        norm: Norm,
        angles: Angles,
    ) -> None:
        """Normalises latents, rotates keys and puts both into one layer's cache, IN PLACE.

        Shapes: cache [pages, page_size, R + Dr]; slots [T] int64, page * page_size + offset, each
        once; latent [T, R]; key_rope [T, Dr]. A cache of uint8 [pages, page_size, C] is one of
        FP8: see `spec.formats.kv_cell_bytes`.
        """
        ...

    def mla_plan(self, batch: PagedBatch, mla: Mla) -> object:
        """What `mla_attend` of this backend wants to know of a step, made once for all layers.

        Reads the device only through the batch's Python ints. Valid while the batch's tensors are
        not changed.
        """
        ...

    def mla_attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        kv_b: Held,
        plan: object,
        *,
        scale: float,
        angles: Angles,
    ) -> torch.Tensor:
        """Causal multi-head latent attention over the pages: [T, H, Dv].

        Shapes: query [T, H, Dn + Dr], its last Dr values not yet rotated; cache as in `mla_write`,
        this step's tokens already in it; kv_b from `hold_kv_b`; plan from `mla_plan`. A token at
        position p sees positions 0 .. p of its own sequence. Cache cells of no sequence may hold
        anything, NaN included; they never reach a result.
        Source: DeepSeek-V2 paper (arXiv 2405.04434), section 2.1.
        """
        ...

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts of each token: ids [T, k] int64 and weights [T, k] float32, best score first.

        Shapes: x [T, D]; weight [E, D]; bias [E] float32 for `noaux_tc`, else None. Everything is
        computed in float32, the product with the weight too. Of equal scores the lower expert id
        goes first. Groups are ranked by their best expert, with `noaux_tc` by the sum of their best
        two. The bias decides the choice only; weights are the scores without it, divided by their
        sum where `moe.normalize_weights`, and always multiplied by `moe.routed_scale`.
        Source: DeepSeek-V2 paper, section 2.2.2; DeepSeek-V3 report, section 2.1.2.
        """
        ...

    def experts(
        self,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        gate_up: Held,
        down: Held,
        *,
        shared: tuple[Held, Held] | None = None,
    ) -> torch.Tensor:
        """Weighted sum of `mlp` over each token's experts, and of a shared MLP: [T, D].

        Shapes: x [T, D]; expert_ids, expert_weights [T, k] as `route` gives them, the k of a token
        different; gate_up [E, 2I, D], gated, and down [E, D, I] from `hold_experts`; shared: the
        gate_up and down of an MLP that is added with weight 1. The sum runs in float32, in an order
        that does not depend on the other tokens.
        """
        ...

    def mask_logits(self, logits: torch.Tensor, edits: LogitEdits) -> None:
        """Applies a mask, then biases, then penalties to logits [R, V] float32, IN PLACE.

        Repetition divides positive and multiplies negative logits of seen tokens; then frequency
        times count and, where the count is over 0, presence are subtracted.
        """
        ...

    def largest(self, logits: torch.Tensor) -> torch.Tensor:
        """The largest logit of each row of [R, V] float32: [R] float32; NaN where it holds one."""
        ...

    def sample(self, logits: torch.Tensor, sampling: SamplingRows) -> torch.Tensor:
        """One token a row of logits [R, V] float32: [R] int64.

        Rows named by `sampling`: softmax of logits / temperature, sorted descending (equal ones by
        lower id); keep the best top_k, of them those of at least min_p times the best's
        probability, of them the smallest head whose share reaches top_p; of what is kept, the
        first token at which the cumulated share exceeds the row's uniform. All other rows: the
        largest logit, of equal ones the lowest id. A row's result depends on that row alone. A
        row must have a finite logit; NaN gives an unspecified token of the vocabulary.
        """
        ...

    def token_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, *, top: int) -> Logprobs:
        """log softmax of logits [R, V] float32 at tokens [R] int64, and of the `top` best."""
        ...

    def verify(
        self, samples: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
    ) -> torch.Tensor:
        """How many samples of each sequence stand, [S] int64 in 1 .. num_drafts + 1.

        Shapes: samples [S, n + 1] int64, one for each position; drafts [S, n] int64, padded;
        num_drafts [S] int64. Draft i was the input behind samples[i + 1], so sample i + 1 stands
        while drafts 0 .. i equal samples 0 .. i.
        """
        ...
