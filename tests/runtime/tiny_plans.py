"""Deployment plans of a small random checkpoint of the DeepSeek-V3 architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.spec.deepseek import parse_config
from fathom.spec.formats import FLOAT32
from fathom.spec.parallel import Layout
from fathom.spec.plan import DeploymentPlan
from fathom.weights.synthetic import write_checkpoint

VOCAB = 96
TINY_CONFIG: Mapping[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write_tiny_checkpoint(path: Path, seed: int = 0) -> Path:
    """A checkpoint of TINY_CONFIG with random weights, in `path`."""
    write_checkpoint(TINY_CONFIG, path, seed=seed)
    return path


def tiny_plan(
    path: Path,
    *,
    tp: int = 1,
    num_drafts: int = 0,
    depth: int = 2,
    page_size: int = 8,
    num_pages: int = 96,
    max_batch_tokens: int = 256,
    step_timeout_s: float = 60.0,
) -> DeploymentPlan:
    """What the resolver might make of it, on CPU in float32."""
    return DeploymentPlan(
        model_path=str(path),
        served_names=("tiny",),
        model=parse_config(TINY_CONFIG),
        layout=Layout(tp=tp),
        device="cpu",
        compute_dtype=FLOAT32,
        kv_dtype=FLOAT32,
        page_size=page_size,
        num_pages=num_pages,
        max_model_len=256,
        max_batch_tokens=max_batch_tokens,
        max_sequences=8,
        max_queued=16,
        num_drafts=num_drafts,
        run_ahead=depth - 1,
        prefix_cache=True,
        threads=tp,
        seed=0,
        step_timeout_s=step_timeout_s,
        ledger=(),
        decisions=(),
        dequantize=True,
    )
