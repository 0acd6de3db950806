"""What a model is: the dimensions that its config.json states, under one spelling.

`spec/deepseek.py` reads them from the two spellings that checkpoints use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.spec.formats import Format
from fathom.spec.stored import Packing

Scoring = Literal["softmax", "sigmoid"]
TopkMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN context extension, https://arxiv.org/abs/2309.00071, in DeepSeek's parametrisation."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the `qk_rope_head_dim` part of queries and keys.

    `interleaved`: pairs are (2i, 2i+1), as DeepSeek stores them; else (i, i + D/2).
    """

    theta: float
    interleaved: bool
    yarn: Yarn | None


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention, DeepSeek-V2 paper (arXiv 2405.04434) section 2.1."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int

    @property
    def qk_dim(self) -> int:
        """Width of a query or key head."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Values that the cache keeps for a token and layer."""
        return self.kv_lora_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class Moe:
    """DeepSeekMoE with shared experts, DeepSeek-V3 report (arXiv 2412.19437) section 2.1.2."""

    num_experts: int
    num_shared_experts: int
    experts_per_token: int
    num_groups: int
    groups_per_token: int
    intermediate_size: int
    scoring: Scoring
    method: TopkMethod
    normalize_weights: bool
    routed_scale: float


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the DeepSeek-V2/V3 architecture.

    `dense_layers` holds the indices of layers whose MLP is dense; the rest are MoE.
    `num_mtp_layers` layers follow the last one in the checkpoint. `weight_format` is the format of
    the quantised matrices (BFLOAT16 and so on where nothing is quantised); `dtype` the format of
    everything else, and of modules that one of the regular expressions `kept` finds. `packing` is
    the layout in which int4 is stored.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    dense_layers: frozenset[int]
    dense_intermediate_size: int
    mla: Mla
    moe: Moe | None
    rope: Rope
    rms_norm_eps: float
    tie_embeddings: bool
    max_position: int
    num_mtp_layers: int
    weight_format: Format
    dtype: Format
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    packing: Packing | None = None
    kept: tuple[str, ...] = ()

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` has experts; in a MoE model its MTP layers do."""
        return self.moe is not None and layer not in self.dense_layers
