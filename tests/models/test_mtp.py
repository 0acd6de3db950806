"""Compares the MTP layer with the formula of the V3 report, on a decoder layer of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from fathom.models.registry import LanguageModel, build_model
from fathom.ops.comm import SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard
from tests.models.hf_models import Params, make_hf, params_of, spec_of, yarn
from tests.models.paged_runs import PagedRun

NUM_LAYERS = 2
PREFIX = f"model.layers.{NUM_LAYERS}"


def config(num_layers: int) -> DeepseekV3Config:
    return DeepseekV3Config(
        vocab_size=90,
        hidden_size=48,
        intermediate_size=40,
        moe_intermediate_size=24,
        num_hidden_layers=num_layers,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=3,
        max_position_embeddings=512,
        rope_parameters=yarn(4.0, 1.0, 1.0),
        num_mtp_layers=0,
    )


def checkpoint() -> tuple[DeepseekV3ForCausalLM, ModelSpec, Params]:
    """A model of one layer too many: its last layer is the MTP layer's."""
    hf = make_hf(config(NUM_LAYERS + 1), seed=3)
    params = params_of(hf)
    generator = torch.Generator().manual_seed(4)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weight = torch.rand(48, generator=generator) + 0.5
        params[f"{PREFIX}.{name}.weight"] = weight
    params[f"{PREFIX}.eh_proj.weight"] = torch.randn(48, 96, generator=generator) * 0.1
    spec = spec_of(hf, num_hidden_layers=NUM_LAYERS, num_nextn_predict_layers=1)
    return hf, spec, params


def build(spec: ModelSpec, params: Params) -> LanguageModel:
    return build_model(
        spec,
        dict(params),
        ops=ReferenceBackend(),
        comm=SingleRank(),
        shard=Shard(),
        dtype=torch.float32,
    )


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@torch.no_grad()
def naive(
    hf: DeepseekV3ForCausalLM, params: Params, tokens: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Hidden states of the MTP layer for tokens[:-1], each followed by the next."""
    embedding = hf.model.embed_tokens.weight[tokens[1:]]
    joined = torch.cat(
        (
            rms(embedding, params[f"{PREFIX}.enorm.weight"]),
            rms(hidden, params[f"{PREFIX}.hnorm.weight"]),
        ),
        dim=-1,
    )
    x = (joined @ params[f"{PREFIX}.eh_proj.weight"].T)[None]
    size = x.shape[1]
    mask = torch.full((size, size), float("-inf")).triu(1)[None, None]
    angles = hf.model.rotary_emb(x, torch.arange(size)[None])
    out = hf.model.layers[NUM_LAYERS](x, attention_mask=mask, position_embeddings=angles)
    return rms(out[0], params[f"{PREFIX}.shared_head.norm.weight"])


@torch.no_grad()
def trunk(hf: DeepseekV3ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """The main model's hidden states after its final norm."""
    x = hf.model.embed_tokens(tokens)[None]
    mask = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)[None, None]
    angles = hf.model.rotary_emb(x, torch.arange(len(tokens))[None])
    for layer in hf.model.layers[:NUM_LAYERS]:
        x = layer(x, attention_mask=mask, position_embeddings=angles)
    return hf.model.norm(x)[0]


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_hidden_states_and_logits(page_size: int) -> None:
    hf, spec, params = checkpoint()
    model = build(spec, params)
    (mtp,) = model.mtp
    tokens = torch.randint(90, (31,), generator=torch.Generator().manual_seed(5))
    run = PagedRun(model.main, page_size)
    run.add()
    got = []
    for size in (17, 1, 12):
        start = run.computed[0]
        part = slice(start, start + size)
        batch = run.batch([(0, size)])
        hidden = model.main.forward(tokens[part], batch, run.cache)
        got.append(mtp.forward(tokens[start + 1 : start + size + 1], hidden, batch, run.cache))
        run.computed[0] += size
    wanted = naive(hf, params, tokens, trunk(hf, tokens[:-1]))
    assert_close(torch.cat(got), wanted)
    with torch.no_grad():
        assert_close(mtp.logits(torch.cat(got)), hf.lm_head(wanted))


def test_stored_copies_of_embedding_and_head_take_no_part() -> None:
    """The parameter table calls them copies of the main model's, which take no memory."""
    _, spec, params = checkpoint()
    shared = build(spec, params).mtp[0]
    params[f"{PREFIX}.embed_tokens.weight"] = params["model.embed_tokens.weight"]
    params[f"{PREFIX}.shared_head.head.weight"] = params["lm_head.weight"]
    own = build(spec, params).mtp[0]
    hidden = torch.randn(3, 48, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(own.logits(hidden), shared.logits(hidden))


def test_its_own_output_drafts_the_token_after() -> None:
    """Fed its own hidden state, the layer is the formula applied twice."""
    hf, spec, params = checkpoint()
    model = build(spec, params)
    (mtp,) = model.mtp
    tokens = torch.randint(90, (9,), generator=torch.Generator().manual_seed(7))
    run = PagedRun(model.main, 16)
    run.add()
    batch = run.batch([(0, 8)])
    hidden = model.main.forward(tokens[:8], batch, run.cache)
    once = mtp.forward(tokens[1:], hidden, batch, run.cache)
    twice = mtp.forward(tokens[1:], once, batch, run.cache)
    assert_close(twice, naive(hf, params, tokens, naive(hf, params, tokens, hidden)))


def test_without_its_parameters_there_is_no_layer() -> None:
    _, spec, params = checkpoint()
    main_only = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
    assert build(spec, main_only).mtp == ()
