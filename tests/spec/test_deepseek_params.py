"""The parameter table against the published sizes of DeepSeek's checkpoints, against what
transformers saves, and against the invariant that shards tile every tensor once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config
from transformers import DeepseekV3ForCausalLM as Hf3

from fathom.errors import ConfigError
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.families import check_tensor_parallel, tensor_parallel_sizes
from fathom.spec.formats import BFLOAT16, FLOAT32
from fathom.spec.parallel import Layout, Shard, ShardRule, owned_slice
from fathom.spec.params import ParamSpec
from tests.spec.published_configs import DEEPSEEK_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V3

_SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "vocab_size": 100,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}


def test_v3_sizes() -> None:
    """The report's 671 B, the model card's 685 B with MTP, and the repository's 688,586,727,753
    bytes of weights, of which headers of about 130 bytes a tensor are not in the table."""
    table = parameter_table(parse_config(DEEPSEEK_V3))
    main = sum(row.num_elements for row in table if (row.layer or 0) < 61)
    assert main == 671_026_419_200
    assert sum(row.num_elements for row in table) == 684_489_845_504
    stored = sum(row.format.num_bytes(row.shape) for row in table)
    num_tensors = sum(1 + (row.scale_name is not None) for row in table)
    assert 120 < (688_586_727_753 - stored) / num_tensors < 140


def test_v2_sizes() -> None:
    v2 = sum(row.num_elements for row in parameter_table(parse_config(DEEPSEEK_V2)))
    lite = sum(row.num_elements for row in parameter_table(parse_config(DEEPSEEK_V2_LITE)))
    assert round(v2 / 1e9) == 236
    assert round(lite / 1e9, 1) == 15.7


def test_what_v3_keeps_out_of_fp8() -> None:
    table = parameter_table(parse_config(DEEPSEEK_V3))
    plain = {(row.role, row.format.name) for row in table if row.format.block is None}
    assert plain == {
        ("correction_bias", "float32"),
        *(
            (role, "bfloat16")
            for role in (
                *("embed", "head", "norm", "input_norm", "mlp_norm", "q_a_norm", "kv_a_norm"),
                *("router", "mtp_embed", "mtp_embed_norm", "mtp_hidden_norm", "mtp_project"),
                *("mtp_norm", "mtp_head"),
            )
        ),
    }


@pytest.mark.parametrize("q_lora_rank", [8, None])
@pytest.mark.parametrize("is_v3", [True, False])
@pytest.mark.parametrize("is_tied", [True, False])
def test_names_and_shapes_are_those_that_transformers_saves(
    tmp_path: Path, q_lora_rank: int | None, is_v3: bool, is_tied: bool
) -> None:
    fields = {**_SMALL, "q_lora_rank": q_lora_rank, "tie_word_embeddings": is_tied}
    model = (
        Hf3(DeepseekV3Config(**fields))
        if is_v3
        else DeepseekV2ForCausalLM(DeepseekV2Config(**fields))
    )
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    spec = replace(parse_config(model.config.to_dict()), num_mtp_layers=0)
    assert {row.name: row.shape for row in parameter_table(spec)} == saved


def test_mtp_layer_repeats_embedding_and_head() -> None:
    spec = parse_config(DEEPSEEK_V3)
    copies = {row.name: row.copy_of for row in parameter_table(spec) if row.copy_of}
    assert copies == {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    }
    tied = replace(spec, tie_embeddings=True)
    names = {row.name for row in parameter_table(tied)}
    assert "lm_head.weight" not in names
    assert {row.copy_of for row in parameter_table(tied) if row.copy_of} <= names


@pytest.mark.parametrize("published", [DEEPSEEK_V3, DEEPSEEK_V2, DEEPSEEK_V2_LITE])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_shards_tile_every_tensor_once(published: dict[str, object], tp: int) -> None:
    spec = parse_config(published)
    check_tensor_parallel(spec, tp)
    shards = [Shard(Layout(tp=tp), rank) for rank in range(tp)]
    kinds = {
        (row.shape, row.shard, row.role, row.format): row for row in parameter_table(spec)
    }.values()
    for row in kinds:
        parts = [owned_slice(row.shard, row.shape, shard) for shard in shards]
        if row.shard is ShardRule.REPLICATE:
            assert all(part == tuple(slice(0, size) for size in row.shape) for part in parts)
            continue
        axis = 0 if row.shard is ShardRule.ROWS else 1
        ends = [0, *(part[axis].stop for part in parts)]
        assert [part[axis].start for part in parts] == ends[:-1]
        assert ends[-1] == row.shape[axis]
        whole = [part[:axis] + part[axis + 1 :] for part in parts]
        assert all(rest == (slice(0, row.shape[1 - axis]),) for rest in whole)


@given(
    heads=st.integers(1, 12),
    vocab=st.integers(8, 60),
    dense=st.integers(1, 24),
    experts=st.integers(1, 24),
    tp=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_sizes_that_work_divide_everything(
    heads: int, vocab: int, dense: int, experts: int, tp: int
) -> None:
    fields = {**_SMALL, "vocab_size": vocab, "intermediate_size": dense}
    fields |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    fields |= {"moe_intermediate_size": experts, "architectures": ["DeepseekV2ForCausalLM"]}
    spec = parse_config(fields)
    cut = [
        row.shape[0 if row.shard is ShardRule.ROWS else 1]
        for row in parameter_table(spec)
        if row.shard is not ShardRule.REPLICATE
    ]
    if tp in tensor_parallel_sizes(spec):
        check_tensor_parallel(spec, tp)
        assert all(size % tp == 0 for size in cut)
        # A head is never parted.
        assert heads % tp == 0
    else:
        with pytest.raises(ConfigError, match="tensor_parallel_size") as caught:
            check_tensor_parallel(spec, tp)
        assert all(str(size) in caught.value.wanted for size in tensor_parallel_sizes(spec))


def _row(shape: tuple[int, int], rule: ShardRule, role: str) -> ParamSpec:
    spec = parse_config(DEEPSEEK_V3)
    return ParamSpec("w", shape, spec.weight_format, rule, 0, role)


@pytest.mark.parametrize(
    ("row", "tp", "keeps"),
    [
        (_row((1024, 512), ShardRule.ROWS, "q_b"), 8, True),
        (_row((1024, 512), ShardRule.ROWS, "q_b"), 16, False),  # two ranks in one block
        (_row((512, 1024), ShardRule.COLUMNS, "o"), 8, True),
        (_row((512, 1024), ShardRule.COLUMNS, "o"), 16, True),  # each inside one block
        (_row((512, 192), ShardRule.COLUMNS, "o"), 2, False),  # 96 to 192 spans two
        (_row((576, 512), ShardRule.REPLICATE, "kv_a"), 4, True),  # a short last block
        (_row((576, 512), ShardRule.REPLICATE, "q_a"), 4, False),  # kv_a is joined below it
        (_row((1024, 512), ShardRule.ROWS, "kv_b"), 1, False),  # used head by head
    ],
)
def test_blocks_are_kept_where_a_cut_leaves_them_whole(
    row: ParamSpec, tp: int, keeps: bool
) -> None:
    held = {
        row.local_format(Shard(Layout(tp=tp), rank), BFLOAT16, dequantize=False)
        for rank in range(tp)
    }
    assert held == {row.format if keeps else BFLOAT16}
    assert row.local_format(Shard(Layout(tp=tp)), FLOAT32, dequantize=True) == FLOAT32


def test_names_are_unique() -> None:
    names = Counter(row.name for row in parameter_table(parse_config(DEEPSEEK_V3)))
    assert max(names.values()) == 1
