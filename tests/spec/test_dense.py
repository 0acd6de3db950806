"""Dense specs and tables against transformers' own models (on the meta device), and shards against
the rule that key heads are whole and every one is held."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fathom.errors import CheckpointError, ConfigError
from fathom.spec.deepseek import parse_config
from fathom.spec.dense import DenseSpec
from fathom.spec.families import (
    check_tensor_parallel,
    parameters,
    parse_model,
    tensor_parallel_sizes,
)
from fathom.spec.known import find_model, known_names
from fathom.spec.parallel import Layout, Shard, owned_slice

_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
_LLAMA = {**_SMALL, "architectures": ["LlamaForCausalLM"]}
_DENSE = [name for name in known_names() if isinstance(find_model(name).spec, DenseSpec)]


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def _table(spec: object) -> dict[str, tuple[int, ...]]:
    return {row.name: row.shape for row in parameters(spec)}  # type: ignore[arg-type]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("extra", [{}, {"attention_bias": True, "mlp_bias": True, "head_dim": 16}])
def test_llama_has_transformers_parameters(is_tied: bool, extra: dict[str, Any]) -> None:
    config = LlamaConfig(**_SMALL, **extra, tie_word_embeddings=is_tied)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    fields = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    assert _table(parse_model(fields)) == _shapes(model)


@pytest.mark.parametrize("is_tied", [True, False])
def test_qwen2_has_transformers_parameters(is_tied: bool) -> None:
    config = Qwen2Config(**_SMALL, tie_word_embeddings=is_tied)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    # Without architectures: model_type says it.
    assert _table(parse_model(config.to_dict())) == _shapes(model)


@pytest.mark.parametrize("name", _DENSE)
def test_known_models_have_transformers_parameters(name: str) -> None:
    spec = find_model(name).spec
    assert isinstance(spec, DenseSpec)
    config, model = (
        (LlamaConfig, LlamaForCausalLM)
        if spec.architecture == "LlamaForCausalLM"
        else (Qwen2Config, Qwen2ForCausalLM)
    )
    fields = {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.gqa.num_heads,
        "num_key_value_heads": spec.gqa.num_kv_heads,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tie_embeddings,
    }
    with torch.device("meta"):
        assert _table(spec) == _shapes(model(config(**fields)))


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 32, 64])
def test_ranks_hold_whole_key_heads_and_every_one(tp: int) -> None:
    spec = find_model("R1-Distill-Llama-70B").spec
    assert isinstance(spec, DenseSpec)
    check_tensor_parallel(spec, tp)
    key = next(row for row in parameters(spec) if row.role == "gqa_k")
    held: Counter[int] = Counter()
    for rank in range(tp):
        rows = owned_slice(
            key.shard, key.shape, Shard(Layout(tp=tp), rank), max_parts=key.max_parts
        )[0]
        assert rows.start % spec.gqa.head_dim == rows.stop % spec.gqa.head_dim == 0
        assert rows.stop - rows.start == key.local_shape(Shard(Layout(tp=tp), rank))[0]
        held.update(range(rows.start, rows.stop, spec.gqa.head_dim))
    assert set(held.values()) == {max(1, tp // 8)}
    assert len(held) == 8


def test_layouts_that_cannot_be_say_those_that_can() -> None:
    coder = find_model("deepseek-coder-33b-instruct").spec
    assert tensor_parallel_sizes(coder) == (1, 2, 4, 8)
    with pytest.raises(ConfigError, match="one of 1, 2, 4, 8"):
        check_tensor_parallel(coder, 3)
    assert tensor_parallel_sizes(find_model("R1-Distill-Qwen-7B").spec) == (1, 2, 4)
    assert 128 in tensor_parallel_sizes(find_model("R1").spec, 128)


def test_awq_bytes_are_those_of_the_published_files() -> None:
    """DeepSeek-Coder-33B in AWQ (groups of 128) is published as 18.01 GB of safetensors; zero
    points have four bits there and a byte in memory."""
    config = {
        **_LLAMA,
        "hidden_size": 7168,
        "intermediate_size": 19200,
        "num_hidden_layers": 62,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
        "vocab_size": 32256,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "version": "gemm",
            "zero_point": True,
        },
    }
    rows = parameters(parse_model(config))
    stored = sum(
        part.shape[0]
        * (part.shape[1] if len(part.shape) > 1 else 1)
        * (4 if "I32" in part.dtypes else 2)
        for row in rows
        for part in row.parts
    )
    assert stored == pytest.approx(18.01e9, rel=0.005)
    held = sum(row.format.num_bytes(row.shape) for row in rows)
    assert stored < held < 24e9


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], wanted: str) -> None:
    with pytest.raises(CheckpointError, match=wanted):
        parse_model({**_LLAMA, **change})


@pytest.mark.parametrize("config", [[], None, "x"])
def test_what_is_no_object_is_refused(config: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        parse_model(config)


def test_the_engine_refuses_dense_models_by_name() -> None:
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        parse_config(_LLAMA)
