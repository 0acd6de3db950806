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
from fathom.ops.backends.cpu.library import check
from fathom.ops.backends.cpu.logits import CpuLogits
from fathom.ops.backends.cpu.matrices import PackedMatrix, pack
from fathom.ops.backends.cpu.recording import Recording, RecordingMemory
from fathom.ops.backends.cpu.rows import CpuRows
from fathom.ops.batch import PagedBatch
from fathom.ops.reference import ReferenceBackend
from fathom.spec.formats import Format
from fathom.spec.model import Mla


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

    def _new(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
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
        stride, rows, width = _rows(x, "x")
        columns = weight.num_rows
        out = self._new(rows, columns, dtype=torch.float32 if is_wide else torch.bfloat16)
        added, added_stride = 0, 0
        if residual is not None:
            added_stride = _rows_like(residual, rows, width, "residual")
            added = residual.data_ptr()
        norm_at, eps = (0, 0.0) if norm is None else (_vector(norm.weight, width), norm.eps)
        check(
            self._library.fathom_linear(
                weight.address,
                0,
                x.data_ptr(),
                stride,
                rows,
                width,
                norm_at,
                eps,
                added,
                added_stride,
                out.data_ptr(),
                columns,
                is_wide,
            )
        )
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
        stride, rows, width = _rows(x, "x")
        out = self._new(rows, width)
        added, added_stride = 0, 0
        if residual is not None:
            added_stride = _rows_like(residual, rows, width, "residual")
            added = residual.data_ptr()
        check(
            self._library.fathom_rms_norm(
                x.data_ptr(),
                stride,
                rows,
                width,
                _vector(weight, width),
                eps,
                added,
                added_stride,
                out.data_ptr(),
                width,
            )
        )
        return out

    def mlp(self, x: torch.Tensor, gate_up: Held, down: Held) -> torch.Tensor:
        """See `Backend.mlp`."""
        return self._experts(x, None, None, None, (gate_up, down))

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
        return self._experts(x, expert_ids, expert_weights, (gate_up, down), shared)

    def _experts(
        self,
        x: torch.Tensor,
        ids: torch.Tensor | None,
        weights: torch.Tensor | None,
        routed: tuple[Held, Held] | None,
        shared: tuple[Held, Held] | None,
    ) -> torch.Tensor:
        stride, rows, width = _rows(x, "x")
        out = self._new(rows, width)
        per_row, ids_at, weights_at = 0, 0, 0
        if ids is not None and weights is not None:
            _expect(ids, torch.int64, "expert_ids")
            _expect(weights, torch.float32, "expert_weights")
            if ids.shape != weights.shape or ids.shape[0] != rows:
                raise EngineError("expert_ids", found=f"shape {tuple(ids.shape)} for {rows} rows")
            per_row, ids_at, weights_at = ids.shape[1], ids.data_ptr(), weights.data_ptr()
        check(
            self._library.fathom_experts(
                *_addresses(routed),
                ids_at,
                weights_at,
                per_row,
                *_addresses(shared),
                x.data_ptr(),
                stride,
                rows,
                width,
                out.data_ptr(),
                width,
            )
        )
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
        stride, rows, rank = _rows(latent, "latent")
        rope = key_rope.shape[1]
        if _rows_like(key_rope, rows, rope, "key_rope") != stride and rows > 1:
            latent, key_rope = latent.contiguous(), key_rope.contiguous()
            joined = torch.cat((latent, key_rope), dim=1)
            assert self._recording is None, "a copy that no recording would repeat"
            latent, key_rope, stride = joined[:, :rank], joined[:, rank:], rank + rope
        _expect(slots, torch.int64, "slots")
        check(
            self._library.fathom_mla_write(
                library.cache_of(cache, rank, rope),
                slots.data_ptr(),
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
        for tensor in (batch.query_starts, batch.context_lens, batch.page_table):
            _expect(tensor, torch.int64, "batch")
        table = library.Batch(
            sequences=len(batch.query_lens),
            tokens=batch.positions.shape[0],
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens.data_ptr(),
            page_table=batch.page_table.data_ptr(),
            table_width=batch.page_table.shape[1],
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


def _rows(x: torch.Tensor, name: str) -> tuple[int, int, int]:
    """Stride, rows and width of activations."""
    if x.dtype != torch.bfloat16 or x.dim() != 2 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise EngineError(
            name,
            found=f"{x.dtype} of shape {tuple(x.shape)}, strides {x.stride()}",
            wanted="bfloat16 [T, K], rows in one piece",
        )
    return x.stride(0), x.shape[0], x.shape[1]


def _rows_like(x: torch.Tensor, rows: int, width: int, name: str) -> int:
    stride, own_rows, own_width = _rows(x, name)
    if (own_rows, own_width) != (rows, width):
        raise EngineError(name, found=f"shape {tuple(x.shape)}", wanted=f"[{rows}, {width}]")
    return stride


def _vector(weight: torch.Tensor, width: int) -> int:
    _expect(weight, torch.bfloat16, "norm")
    if weight.shape != (width,):
        raise EngineError("norm", found=f"shape {tuple(weight.shape)}", wanted=f"[{width}]")
    return weight.data_ptr()


def _expect(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise EngineError(
            name, found=f"{tensor.dtype}, strides {tensor.stride()}", wanted=f"{dtype}, contiguous"
        )


def _angles(angles: Angles, tokens: int, rope: int) -> tuple[int, int, bool]:
    for tensor in (angles.cos, angles.sin):
        _expect(tensor, torch.float32, "angles")
        if tensor.shape != (tokens, rope // 2):
            raise EngineError("angles", found=f"shape {tuple(tensor.shape)}")
    return angles.cos.data_ptr(), angles.sin.data_ptr(), angles.is_interleaved


def _addresses(pair: tuple[Held, Held] | None) -> tuple[int, int]:
    if pair is None:
        return 0, 0
    gate_up, down = pair
    assert isinstance(gate_up, PackedMatrix)
    assert isinstance(down, PackedMatrix)
    return gate_up.address, down.address
