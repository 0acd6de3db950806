"""The layers of DeepSeek-V2 and V3, written in ops and collectives only.

Tensor parallel as in Megatron (arXiv 1909.08053): a rank holds some heads and a part of the inner
width of every MLP and expert; one all_reduce follows attention and one the MLP. `layer(x)` gives
this rank's part of the sum; the caller reduces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fathom.models.params import ParamSource
from fathom.ops.api import Angles, Backend, Held, Norm
from fathom.ops.batch import PagedBatch
from fathom.ops.comm import Communicator
from fathom.spec.model import Mla, ModelSpec, Moe
from fathom.spec.rope import inverse_frequencies, rope_attention_factor, softmax_scale

# DeepSeek's own code and transformers both leave the norms of the latents at this default, whatever
# rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Context:
    """What all layers of one model share."""

    spec: ModelSpec
    ops: Backend
    comm: Communicator
    tp: int


@dataclass(frozen=True, slots=True)
class StepState:
    """What all layers of one step share; plan of the backend."""

    batch: PagedBatch
    angles: Angles
    plan: object


class RotaryAngles:
    """Cosines and sines of a step's positions."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        frequencies = inverse_frequencies(spec.rope, spec.mla.rope_dim)
        self._frequencies = torch.tensor(frequencies, dtype=torch.float32, device=device)
        self._factor = rope_attention_factor(spec.rope)
        self._is_interleaved = spec.rope.interleaved

    def at(self, positions: torch.Tensor) -> Angles:
        """The angles of T positions, YaRN's factor in their cosines and sines."""
        angles = torch.outer(positions.float(), self._frequencies)
        cos, sin = angles.cos(), angles.sin()
        if self._factor != 1.0:
            cos, sin = cos * self._factor, sin * self._factor
        return Angles(cos, sin, self._is_interleaved)


class Attention:
    """Multi-head latent attention; parameters under `prefix`."""

    def __init__(self, context: Context, source: ParamSource, prefix: str) -> None:
        spec, mla = context.spec, context.spec.mla
        self._ops, self._mla = context.ops, mla
        self._num_heads = mla.num_heads // context.tp
        self._scale = softmax_scale(spec)
        self._load_inputs(source, prefix, spec.hidden_size, mla)
        self._kv_b = source.kv_b(f"{prefix}.kv_b_proj.weight", self._num_heads, mla)
        self._o = source.matrix(
            (f"{prefix}.o_proj.weight",), ((spec.hidden_size, self._num_heads * mla.v_dim),)
        )

    def _load_inputs(self, source: ParamSource, prefix: str, hidden: int, mla: Mla) -> None:
        queries = self._num_heads * mla.qk_dim
        kv_name = f"{prefix}.kv_a_proj_with_mqa.weight"
        kv_norm = source.tensor(f"{prefix}.kv_a_layernorm.weight", (mla.kv_lora_rank,))
        self._kv_norm = Norm(kv_norm, LATENT_NORM_EPS)
        if mla.q_lora_rank is None:
            self._input_sizes = [queries, mla.kv_lora_rank, mla.rope_dim]
            names = (f"{prefix}.q_proj.weight", kv_name)
        else:
            self._input_sizes = [mla.q_lora_rank, mla.kv_lora_rank, mla.rope_dim]
            names = (f"{prefix}.q_a_proj.weight", kv_name)
            q_norm = source.tensor(f"{prefix}.q_a_layernorm.weight", (mla.q_lora_rank,))
            self._q_norm = Norm(q_norm, LATENT_NORM_EPS)
            shape = (queries, mla.q_lora_rank)
            self._q_b = source.matrix((f"{prefix}.q_b_proj.weight",), (shape,))
        shapes = ((self._input_sizes[0], hidden), (mla.latent_dim, hidden))
        self._inputs = source.matrix(names, shapes)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm: Norm,
        cache: torch.Tensor,
        step: StepState,
    ) -> torch.Tensor:
        """This rank's part of the output [T, hidden], of x after `norm` (see `Backend.linear`);
        writes the tokens' latents into `cache`."""
        ops, mla = self._ops, self._mla
        inputs = ops.linear(x, self._inputs, norm=norm, residual=residual)
        query, latent, key_rope = torch.split(inputs, self._input_sizes, dim=-1)
        if mla.q_lora_rank is not None:
            query = ops.linear(query, self._q_b, norm=self._q_norm)
        slots = step.batch.slots
        ops.mla_write(cache, slots, latent, key_rope, norm=self._kv_norm, angles=step.angles)
        heads = ops.mla_attend(
            query.view(-1, self._num_heads, mla.qk_dim),
            cache,
            self._kv_b,
            step.plan,
            scale=self._scale,
            angles=step.angles,
        )
        return ops.linear(heads.flatten(1), self._o)


class Mlp(Protocol):
    """What follows attention in a layer."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the output [T, hidden]."""
        ...


def _gated(context: Context, source: ParamSource, prefix: str, size: int) -> tuple[Held, Held]:
    """gate_up and down of an MLP of inner width `size` over all ranks."""
    hidden, part = context.spec.hidden_size, size // context.tp
    names = f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"
    return (
        source.matrix(names, ((part, hidden),) * 2, is_gated=True),
        source.matrix((f"{prefix}.down_proj.weight",), ((hidden, part),)),
    )


class DenseMlp:
    """down(silu(gate x) * up x) of inner width `size` over all ranks; parameters under `prefix`."""

    def __init__(self, context: Context, source: ParamSource, prefix: str, size: int) -> None:
        self._ops = context.ops
        self._gate_up, self._down = _gated(context, source, prefix, size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Mlp`."""
        return self._ops.mlp(x, self._gate_up, self._down)


class MoeMlp:
    """Routed experts plus shared experts; parameters under `prefix`."""

    def __init__(self, context: Context, source: ParamSource, prefix: str, moe: Moe) -> None:
        self._ops, self._moe = context.ops, moe
        hidden, part = context.spec.hidden_size, moe.intermediate_size // context.tp
        self._router = source.tensor(f"{prefix}.gate.weight", (moe.num_experts, hidden))
        self._bias = None
        if moe.method == "noaux_tc":
            name = f"{prefix}.gate.e_score_correction_bias"
            self._bias = source.exact(name, (moe.num_experts,))
        experts = [f"{prefix}.experts.{index}" for index in range(moe.num_experts)]
        self._gate_up = source.experts(
            [(f"{name}.gate_proj.weight", f"{name}.up_proj.weight") for name in experts],
            ((part, hidden),) * 2,
            is_gated=True,
        )
        self._down = source.experts(
            [(f"{name}.down_proj.weight",) for name in experts], ((hidden, part),)
        )
        self._shared = None
        if moe.num_shared_experts:
            size = moe.num_shared_experts * moe.intermediate_size
            self._shared = _gated(context, source, f"{prefix}.shared_experts", size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Mlp`. Every rank routes for itself: the router is replicated and exact arithmetic
        on equal inputs gives equal choices."""
        ids, weights = self._ops.route(x, self._router, self._bias, self._moe)
        return self._ops.experts(x, ids, weights, self._gate_up, self._down, shared=self._shared)


class DecoderLayer:
    """Layer `index` of the checkpoint: attention and an MLP, each on the normed residual stream."""

    def __init__(self, context: Context, source: ParamSource, index: int) -> None:
        spec, prefix = context.spec, f"model.layers.{index}"
        self._ops, self._comm, eps = context.ops, context.comm, spec.rms_norm_eps
        shape = (spec.hidden_size,)
        self._input_norm = Norm(source.tensor(f"{prefix}.input_layernorm.weight", shape), eps)
        self._attention = Attention(context, source, f"{prefix}.self_attn")
        self._mlp_norm = Norm(
            source.tensor(f"{prefix}.post_attention_layernorm.weight", shape), eps
        )
        self._mlp: Mlp
        if spec.moe is None or index in spec.dense_layers:
            size = spec.dense_intermediate_size
            self._mlp = DenseMlp(context, source, f"{prefix}.mlp", size)
        else:
            self._mlp = MoeMlp(context, source, f"{prefix}.mlp", spec.moe)

    def __call__(
        self,
        update: torch.Tensor | None,
        residual: torch.Tensor,
        cache: torch.Tensor,
        step: StepState,
    ) -> torch.Tensor:
        """What the caller is to add to `residual` [T, hidden] next.

        `update` is what the layer before left to add, None for the first. Both of this layer's
        additions but the last happen IN PLACE in `residual`, fused with the norms.
        """
        x, added = (residual, None) if update is None else (update, residual)
        attended = self._comm.all_reduce(self._attention(x, added, self._input_norm, cache, step))
        norm = self._mlp_norm
        normed = self._ops.rms_norm(attended, norm.weight, eps=norm.eps, residual=residual)
        return self._comm.all_reduce(self._mlp(normed))


class VocabularyRows:
    """This rank's rows of an embedding table and of a head."""

    def __init__(self, context: Context, embedding: torch.Tensor, head: Held) -> None:
        self._ops, self._comm = context.ops, context.comm
        self.embedding, self.head = embedding, head

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, hidden]; a new tensor."""
        first_id = self._comm.rank * self.embedding.shape[0]
        return self._comm.all_reduce(self._ops.embed(token_ids, self.embedding, first_id=first_id))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab] float32 of normed hidden states [R, hidden], of all ranks."""
        return self._comm.all_gather(self._ops.linear(hidden, self.head, is_wide=True), -1)
