"""Who owns what, over every layout of small models: ranks together hold each value as often as the
layout repeats it, counted value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.spec.families import Model, check_layout, num_experts, parameters, parse_model
from fathom.spec.parallel import Layout, Shard, ShardRule, stage_of
from fathom.spec.params import ParamSpec

MOE: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "max_position_embeddings": 64,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "vocab_size": 16,
    "kv_lora_rank": 4,
    "q_lora_rank": 6,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
DENSE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 64,
    "hidden_size": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 16,
    "vocab_size": 16,
}
MODELS = (parse_model(MOE), parse_model(DENSE))


@given(
    model=st.sampled_from(MODELS),
    tp=st.sampled_from((1, 2, 4, 8)),
    dp=st.integers(1, 4),
    ep=st.sampled_from((1, 2, 4, 8)),
    pp=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_ranks_tile_every_parameter(model: Model, tp: int, dp: int, ep: int, pp: int) -> None:
    layout = Layout(tp=tp, dp=dp, ep=ep, pp=pp)
    try:
        check_layout(model, layout)
    except ConfigError:
        return
    shards = [Shard(layout, rank) for rank in range(layout.world_size)]
    for row in parameters(model):
        times = np.zeros(row.shape, dtype=np.int64)
        for shard in shards:
            if row.is_on(shard, model.num_layers, num_experts(model)):
                times[row.owned(shard)] += 1
        assert (times == _repeats(row, layout)).all(), row.name


def _repeats(row: ParamSpec, layout: Layout) -> int:
    """How many ranks hold each value: of experts one; of what is cut one in each replica, of heads
    of keys as many as share one; of the rest every rank of a stage."""
    if row.expert is not None:
        return 1
    if row.shard is ShardRule.REPLICATE:
        return layout.stage_size
    return layout.dp * max(1, layout.tp // (row.max_parts or layout.tp))


@given(num_layers=st.integers(1, 70), num_mtp=st.integers(0, 2), pp=st.integers(1, 70))
def test_stages_are_even_and_in_order(num_layers: int, num_mtp: int, pp: int) -> None:
    pp = min(pp, num_layers)
    stages = [stage_of(layer, num_layers, pp) for layer in range(num_layers + num_mtp)]
    assert stages == sorted(stages)
    assert stages[num_layers:] == [pp - 1] * num_mtp
    counts = [stages[:num_layers].count(stage) for stage in range(pp)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("tp", [3, 16])
def test_key_heads_are_repeated_where_that_comes_out_even(tp: int) -> None:
    with pytest.raises(ConfigError, match="num_attention_heads 8"):
        check_layout(MODELS[1], Layout(tp=tp))
