"""Small ops on rows of activations by the CPU kernels, routing among them."""

from __future__ import annotations

from typing import Any

import torch

from fathom.errors import EngineError
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.checks import pointer, rows_of
from fathom.spec.model import Moe

_BF16, _FLOAT, _INT = torch.bfloat16, torch.float32, torch.int64
_GROUP_RANKS = {"greedy": 0, "group_limited_greedy": 1, "noaux_tc": 2}


class CpuRows:
    """`embed`, `rope`, `silu_mul` and `route` of `Backend`; activations are bfloat16, for `embed`
    and `route` float32 too. A wrong dtype, shape or layout raises EngineError."""

    _library: Any

    def _new(self, *shape: int, dtype: torch.dtype = _BF16) -> torch.Tensor:
        """A tensor for a result; a backend that records has its own."""
        return torch.empty(shape, dtype=dtype)

    def embed(
        self, token_ids: torch.Tensor, weight: torch.Tensor, *, first_id: int = 0
    ) -> torch.Tensor:
        """See `Backend.embed`."""
        rows, (num_ids, width) = token_ids.shape[0], weight.shape
        out = self._new(rows, width, dtype=weight.dtype)
        failed = self._library.fathom_embed(
            pointer(token_ids, _INT, (rows,), "token_ids"),
            rows,
            pointer(weight, weight.dtype, (num_ids, width), "embedding"),
            num_ids,
            width * weight.element_size(),
            first_id,
            out.data_ptr(),
        )
        library.check(failed)
        return out

    def rope(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
    ) -> torch.Tensor:
        """See `Backend.rope`. `x` may be a slice of wider heads."""
        if x.dtype != _BF16 or x.stride(-1) != 1 or x.dim() not in (2, 3) or not x.is_cpu:
            raise EngineError(
                "x of rope",
                found=f"{x.dtype} {list(x.shape)} with strides {list(x.stride())}",
                wanted="bfloat16 [T, D] or [T, H, D] on the CPU, D unbroken",
            )
        tokens, half = x.shape[0], x.shape[-1] // 2
        heads, head_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
        out = self._new(*x.shape, dtype=_BF16)
        failed = self._library.fathom_rope(
            x.data_ptr(),
            x.stride(0),
            head_stride,
            tokens,
            heads,
            half,
            pointer(cos, _FLOAT, (tokens, half), "cos"),
            pointer(sin, _FLOAT, (tokens, half), "sin"),
            interleaved,
            out.data_ptr(),
        )
        library.check(failed)
        return out

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Backend.silu_mul`."""
        rows = x if x.dim() == 2 else x.view(-1, x.shape[-1])
        stride, width = rows_of(rows, _BF16, "x of silu_mul"), x.shape[-1] // 2
        out = self._new(*x.shape[:-1], width, dtype=_BF16)
        failed = self._library.fathom_silu_mul(
            rows.data_ptr(), stride, rows.shape[0], width, out.data_ptr()
        )
        library.check(failed)
        return out

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.route`. A token's result does not depend on the others."""
        tokens, width = x.shape
        dtype = _FLOAT if x.dtype == _FLOAT else _BF16
        experts, slots = moe.num_experts, moe.experts_per_token
        router = library.Router(
            weight=pointer(weight, dtype, (experts, width), "router"),
            bias=None if bias is None else pointer(bias, _FLOAT, (experts,), "bias of the router"),
            experts=experts,
            width=width,
            is_wide=dtype is _FLOAT,
            is_softmax=moe.scoring == "softmax",
            group_rank=_GROUP_RANKS[moe.method],
            groups=moe.num_groups,
            groups_per_token=moe.groups_per_token,
            per_token=slots,
            is_normalized=moe.normalize_weights,
            scale=moe.routed_scale,
        )
        stride = rows_of(x, dtype, "x of route")
        ids = self._new(tokens, slots, dtype=_INT)
        weights = self._new(tokens, slots, dtype=_FLOAT)
        failed = self._library.fathom_route(
            x.data_ptr(), stride, tokens, router, ids.data_ptr(), weights.data_ptr()
        )
        library.check(failed)
        return ids, weights
