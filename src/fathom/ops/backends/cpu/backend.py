"""The CPU backend: bfloat16 activations, weights in bf16, FP8, int8 or int4, in `csrc/`.

A row's result does not depend, in any bit, on the other rows of a call, nor on threads: every sum
runs in one order. Attention is absorbed for prefill too, so that a token's result does not depend
on how its sequence was cut into steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fathom.errors import EngineError
from fathom.ops.api import Angles, Held, Norm, Weight
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.checks import pointer, rows_of
from fathom.ops.backends.cpu.library import check
from fathom.ops.backends.cpu.logits import CpuLogits
from fathom.ops.backends.cpu.matrices import PackedMatrix, pack
from fathom.ops.backends.cpu.recording import Recording, RecordingMemory
from fathom.ops.backends.cpu.rows import CpuRows
from fathom.ops.batch import PagedBatch
from fathom.ops.reference import ReferenceBackend
from fathom.spec.formats import Format
from fathom.spec.model import Mla

_BF16, _FLOAT, _INT = torch.bfloat16, torch.float32, torch.int64
# What the kernels take of rows of activations: address, stride, rows, width.
_Rows = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _KvB:
    """Per-head matrices: queries into the latents' space, and what heads found out of it."""

    absorb: PackedMatrix
    expand: PackedMatrix
    mla: Mla


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A step's batch as the kernels take it; the tensors behind it are kept."""

    batch: library.Batch
    tensors: PagedBatch


class CpuBackend(CpuLogits, CpuRows, ReferenceBackend):
    """See `Backend`. Activations are bfloat16."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self._library: Any = library.load()
        self._recording: Recording | None = None

    @contextmanager
    def record(self, memory: RecordingMemory) -> Iterator[Recording]:
        """Note down, besides running them, the kernel calls of what is done meanwhile by this
        thread, for replay on the same memory; results lie in `memory`. Nothing but this backend's
        ops may write tensors, inputs apart."""
        kernels = self._library
        self._recording = Recording(kernels, memory)
        self._library = self._recording
        try:
            yield self._recording
        finally:
            self._library, self._recording = kernels, None

    def _new(self, *shape: int, dtype: torch.dtype = _BF16) -> torch.Tensor:
        new = super()._new if self._recording is None else self._recording.new
        return new(*shape, dtype=dtype)

    def hold(
        self,
        parts: Sequence[Weight],
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> Held:
        """See `Backend.hold`."""
        return pack([parts], 1, format=format, is_gated=is_gated)

    def hold_experts(
        self,
        experts: Iterable[Sequence[Weight]],
        count: int,
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> Held:
        """See `Backend.hold_experts`."""
        return pack(experts, count, format=format, is_gated=is_gated)

    def hold_kv_b(
        self, kv_b: Weight, mla: Mla, *, dtype: torch.dtype, format: Format | None = None
    ) -> Held:
        """See `Backend.hold_kv_b`. Keys are turned around, so that both products run over rows."""
        plain = kv_b if isinstance(kv_b, torch.Tensor) else kv_b.dequantize(torch.bfloat16)
        heads = plain.view(-1, mla.nope_dim + mla.v_dim, mla.kv_lora_rank)
        keys = heads[:, : mla.nope_dim].transpose(1, 2).contiguous()
        if format is not None and format.name == "fp8_block":
            format = None  # blocks of 128 rows do not fit heads
        values = heads[:, mla.nope_dim :]
        absorb = pack([[key] for key in keys], len(keys), format=format)
        expand = pack([[value] for value in values], len(keys), format=format)
        return _KvB(absorb, expand, mla)

    def linear(
        self,
        x: torch.Tensor,
        weight: Held,
        *,
        norm: Norm | None = None,
        residual: torch.Tensor | None = None,
        is_wide: bool = False,
    ) -> torch.Tensor:
        """See `Backend.linear`."""
        assert isinstance(weight, PackedMatrix)
        rows = _rows(x, "x")
        out = self._new(x.shape[0], weight.num_rows, dtype=_FLOAT if is_wide else _BF16)
        normed = (0, 0.0) if norm is None else (_vector(norm.weight, x.shape[1]), norm.eps)
        target = out.data_ptr(), weight.num_rows, is_wide
        added = _like(residual, x)
        check(self._library.fathom_linear(weight.address, 0, *rows, *normed, *added, *target))
        return out

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Backend.rms_norm`."""
        rows, width = _rows(x, "x"), x.shape[1]
        out = self._new(x.shape[0], width)
        normed, added = (_vector(weight, width), eps), _like(residual, x)
        check(self._library.fathom_rms_norm(*rows, *normed, *added, out.data_ptr(), width))
        return out

    def mlp(self, x: torch.Tensor, gate_up: Held, down: Held) -> torch.Tensor:
        """See `Backend.mlp`."""
        return self._experts(x, (0, 0, 0), None, (gate_up, down))

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
        """See `Backend.experts`. The sum runs over experts in ascending order of their ids."""
        shape = x.shape[0], expert_ids.shape[1]
        ids = pointer(expert_ids, _INT, shape, "expert_ids")
        weights = pointer(expert_weights, _FLOAT, shape, "expert_weights")
        return self._experts(x, (ids, weights, shape[1]), (gate_up, down), shared)

    def _experts(
        self,
        x: torch.Tensor,
        routes: tuple[int, int, int],
        routed: tuple[Held, Held] | None,
        shared: tuple[Held, Held] | None,
    ) -> torch.Tensor:
        """`routes`: addresses of ids and weights, and how many a row."""
        rows, width = _rows(x, "x"), x.shape[1]
        out = self._new(x.shape[0], width)
        routed_at, shared_at = _addresses(routed), _addresses(shared)
        target = out.data_ptr(), width
        check(self._library.fathom_experts(*routed_at, *routes, *shared_at, *rows, *target))
        return out

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
        """See `Backend.mla_write`."""
        (rows, rank), rope = latent.shape, key_rope.shape[1]
        stride = rows_of(latent, _BF16, "latent")
        if rows_of(key_rope, _BF16, "key_rope") != stride and rows > 1:
            assert self._recording is None, "a copy that no recording would repeat"
            joined = torch.cat((latent, key_rope), dim=1)
            latent, key_rope, stride = joined[:, :rank], joined[:, rank:], rank + rope
        check(
            self._library.fathom_mla_write(
                library.cache_of(cache, rank, rope),
                pointer(slots, _INT, (rows,), "slots"),
                rows,
                latent.data_ptr(),
                key_rope.data_ptr(),
                stride,
                _vector(norm.weight, rank),
                norm.eps,
                *_angles(angles, rows, rope),
            )
        )

    def mla_plan(self, batch: PagedBatch, mla: Mla) -> object:
        """See `Backend.mla_plan`."""
        sequences, width = batch.page_table.shape
        table = library.Batch(
            sequences=sequences,
            tokens=batch.positions.shape[0],
            query_starts=pointer(batch.query_starts, _INT, (sequences + 1,), "query_starts"),
            context_lens=pointer(batch.context_lens, _INT, (sequences,), "context_lens"),
            page_table=pointer(batch.page_table, _INT, (sequences, width), "page_table"),
            table_width=width,
        )
        return _Plan(table, batch)

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
        """See `Backend.mla_attend`."""
        assert isinstance(kv_b, _KvB)
        assert isinstance(plan, _Plan)
        tokens, heads, width = query.shape
        mla = kv_b.mla
        if query.dtype != torch.bfloat16 or query.stride()[1:] != (width, 1):
            raise EngineError("query", found=f"{query.dtype} with strides {query.stride()}")
        if (tokens, width, heads) != (plan.batch.tokens, mla.qk_dim, kv_b.absorb.matrix.experts):
            raise EngineError("query", found=f"shape {tuple(query.shape)}")
        out = self._new(tokens, heads, mla.v_dim)
        check(
            self._library.fathom_mla_attend(
                query.data_ptr(),
                query.stride(0),
                kv_b.absorb.address,
                kv_b.expand.address,
                library.cache_of(cache, mla.kv_lora_rank, mla.rope_dim),
                plan.batch,
                *_angles(angles, tokens, mla.rope_dim),
                scale,
                out.data_ptr(),
            )
        )
        return out


def _rows(x: torch.Tensor, name: str) -> _Rows:
    stride = rows_of(x, _BF16, name)
    rows, width = x.shape
    return x.data_ptr(), stride, rows, width


def _like(residual: torch.Tensor | None, x: torch.Tensor) -> tuple[int, int]:
    """Address and stride of a residual of the shape of `x`; zeros for none."""
    if residual is None:
        return 0, 0
    if residual.shape != x.shape:
        raise EngineError(
            "residual", found=f"shape {list(residual.shape)}", wanted=str(list(x.shape))
        )
    return _rows(residual, "residual")[:2]


def _vector(weight: torch.Tensor, width: int) -> int:
    return pointer(weight, _BF16, (width,), "norm")


def _angles(angles: Angles, tokens: int, rope: int) -> tuple[int, int, bool]:
    cos, sin = (
        pointer(one, _FLOAT, (tokens, rope // 2), "angles") for one in (angles.cos, angles.sin)
    )
    return cos, sin, angles.is_interleaved


def _addresses(pair: tuple[Held, Held] | None) -> tuple[int, int]:
    if pair is None:
        return 0, 0
    gate_up, down = pair
    assert isinstance(gate_up, PackedMatrix)
    assert isinstance(down, PackedMatrix)
    return gate_up.address, down.address
