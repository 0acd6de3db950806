"""The reference backend: every op in plain torch, on any device, in float32 or bfloat16.

It defines what the others must agree with, and it serves CPUs. torch's matrix products may round
differently for different numbers of rows, so a token's logits can change in the last bits with the
size of the step that computes it; everything else here treats each row by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fathom.ops import reference_attention, reference_held, reference_moe, reference_sampling
from fathom.ops.api import Angles, Held, Norm, Weight
from fathom.ops.batch import PagedBatch
from fathom.ops.quant.fp8_block import FP8_ROWS, quantize_fp8
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.sampling import LogitEdits, Logprobs, SamplingRows
from fathom.spec.formats import Format
from fathom.spec.model import Mla, Moe

STRIP_VALUES = 2**24  # values of a quantised matrix that are multiplied out at a time


class ReferenceBackend:
    """See `Backend` for every op. `attention` forces one form of attention; tests do."""

    name = "reference"

    def __init__(self, attention: reference_attention.Path = "auto") -> None:
        self._attention = attention

    def hold(
        self,
        parts: Sequence[Weight],
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> Held:
        """See `Backend.hold`."""
        return reference_held.joined(parts, dtype, format)

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
        return reference_held.stacked(experts, count, dtype, format)

    def hold_kv_b(
        self, kv_b: Weight, mla: Mla, *, dtype: torch.dtype, format: Format | None = None
    ) -> Held:
        """See `Backend.hold_kv_b`."""
        held = reference_held.joined([kv_b], dtype, format)
        plain = held if isinstance(held, torch.Tensor) else held.dequantize(dtype)
        return plain.view(-1, mla.nope_dim + mla.v_dim, mla.kv_lora_rank)

    def embed(
        self, token_ids: torch.Tensor, weight: torch.Tensor, *, first_id: int = 0
    ) -> torch.Tensor:
        """See `Backend.embed`."""
        local = token_ids - first_id
        is_outside = (local < 0) | (local >= weight.shape[0])
        rows = weight[local.masked_fill(is_outside, 0)]
        return rows.masked_fill_(is_outside[:, None], 0)

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Backend.rms_norm`."""
        if residual is not None:
            residual += x
            x = residual
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        return wide.to(x.dtype) * weight

    def rope(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
    ) -> torch.Tensor:
        """See `Backend.rope`."""
        if x.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]
        if interleaved:
            first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        else:
            first, second = x.float().chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        out = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
        return out.to(x.dtype)

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
        assert isinstance(weight, torch.Tensor | QTensor)
        if norm is not None:
            x = self.rms_norm(x, norm.weight, eps=norm.eps, residual=residual)
        out = self._product(x, weight)
        return out.float() if is_wide else out

    def _product(self, x: torch.Tensor, weight: torch.Tensor | QTensor) -> torch.Tensor:
        """Quantised weights are multiplied out by strips of whole blocks."""
        if isinstance(weight, torch.Tensor):
            return torch.nn.functional.linear(x, weight)
        block_rows = weight.block[0]
        strip = max(1, STRIP_VALUES // (weight.shape[1] * block_rows)) * block_rows
        outputs = [
            torch.nn.functional.linear(
                x, weight.slice(slice(start, start + strip), slice(None)).dequantize(x.dtype)
            )
            for start in range(0, weight.shape[0], strip)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def quantize_rows(self, x: torch.Tensor) -> QTensor:
        """See `Backend.quantize_rows`."""
        return quantize_fp8(x, FP8_ROWS)

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Backend.silu_mul`."""
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def mlp(self, x: torch.Tensor, gate_up: Held, down: Held) -> torch.Tensor:
        """See `Backend.mlp`."""
        return self.linear(self.silu_mul(self.linear(x, gate_up)), down)

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
        latent = self.rms_norm(latent, norm.weight, eps=norm.eps)
        key_rope = self._turn(key_rope, angles)
        cells = cache.view(-1, cache.shape[-1])
        cells[slots] = torch.cat((latent, key_rope), dim=-1).to(cache.dtype)

    def _turn(self, x: torch.Tensor, angles: Angles) -> torch.Tensor:
        return self.rope(x, angles.cos, angles.sin, interleaved=angles.is_interleaved)

    def mla_plan(self, batch: PagedBatch, mla: Mla) -> object:
        """See `Backend.mla_plan`."""
        return reference_attention.plan_attention(batch, mla, self._attention)

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
        assert isinstance(plan, reference_attention.AttentionPlan)
        assert isinstance(kv_b, torch.Tensor)
        nope_dim = query.shape[2] - 2 * angles.cos.shape[1]
        q_nope, q_rope = query[..., :nope_dim], self._turn(query[..., nope_dim:], angles)
        return reference_attention.attend(q_nope, q_rope, cache, kv_b, plan, scale=scale)

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.route`."""
        return reference_moe.route(x, weight, bias, moe)

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
        """See `Backend.experts`."""
        assert isinstance(gate_up, torch.Tensor | QTensor)
        assert isinstance(down, torch.Tensor | QTensor)
        routed = reference_moe.experts(x, expert_ids, expert_weights, gate_up, down, mlp=self.mlp)
        return routed if shared is None else routed + self.mlp(x, *shared)

    def mask_logits(self, logits: torch.Tensor, edits: LogitEdits) -> None:
        """See `Backend.mask_logits`."""
        reference_sampling.mask_logits(logits, edits)

    def largest(self, logits: torch.Tensor) -> torch.Tensor:
        """See `Backend.largest`."""
        return logits.amax(dim=-1)

    def sample(self, logits: torch.Tensor, sampling: SamplingRows) -> torch.Tensor:
        """See `Backend.sample`."""
        return reference_sampling.sample(logits, sampling)

    def token_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, *, top: int) -> Logprobs:
        """See `Backend.token_logprobs`."""
        return reference_sampling.token_logprobs(logits, tokens, top=top)

    def verify(
        self, samples: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
    ) -> torch.Tensor:
        """See `Backend.verify`."""
        return reference_sampling.verify(samples, drafts, num_drafts)
