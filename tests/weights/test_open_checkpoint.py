"""What is loaded against the whole tensors of the safetensors library, cut and multiplied out by
hand; ranks' parts against the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from fathom.errors import CheckpointError
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.parallel import Layout, Shard, owned_slice
from fathom.weights.embedded import embedded_path
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.synthetic import write_checkpoint
from tests.weights.tiny_checkpoints import TINY_FP8, TINY_V2, TINY_V3

CPU = torch.device("cpu")


def _stored(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def _value(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The whole tensor in float32, multiplied out block by block."""
    values, scale = stored[name].float(), stored.get(f"{name}_scale_inv")
    if scale is not None:
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                block = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
                values[block] *= scale[row, column]
    return values


@pytest.fixture(scope="module", params=["fp8", "v3", "v2"])
def checkpoint_dir(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"fp8": TINY_FP8, "v3": TINY_V3, "v2": TINY_V2}[request.param]
    path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(config, path, seed=5, max_shard_bytes=300_000)
    return path


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_reads_its_part_exactly(
    checkpoint_dir: Path, tp: int, dequantize: bool, dtype: torch.dtype
) -> None:
    checkpoint = open_checkpoint(checkpoint_dir)
    stored = _stored(checkpoint_dir)
    for rank in range(tp):
        shard = Shard(Layout(tp=tp), rank)
        loaded = load_parameters(checkpoint, shard, dtype=dtype, device=CPU, dequantize=dequantize)
        assert set(loaded) == {row.name for row in checkpoint.table}
        for row in checkpoint.table:
            expected = _value(stored, row.name)[owned_slice(row.shard, row.shape, shard)]
            found = loaded[row.name]
            if isinstance(found, QTensor):
                assert not dequantize
                assert found.data.dtype == torch.float8_e4m3fn
                found = found.dequantize(torch.float32)
            elif row.role == "correction_bias":
                assert found.dtype == torch.float32
            else:
                assert found.dtype == dtype
                expected = expected.to(dtype)
            assert found.is_contiguous()
            assert torch.equal(found, expected), row.name


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    """It says that there is an MTP layer, which it does not save."""
    fields = {k: v for k, v in TINY_V3.items() if k not in ("architectures", "torch_dtype")}
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**fields))
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec.num_mtp_layers == 0
    loaded = load_parameters(checkpoint, Shard(), dtype=torch.float32, device=CPU, dequantize=False)
    state = model.state_dict()
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    assert torch.equal(loaded[name], state[name])
    expert = loaded["model.layers.1.mlp.experts.2.down_proj.weight"]
    assert torch.equal(expert, state["model.layers.1.mlp.experts.down_proj"][2])


def test_copies_are_the_originals_even_where_they_are_not_stored(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path, seed=1)
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if k != "model.layers.2.embed_tokens.weight"}
    save_file(kept, file)
    checkpoint = open_checkpoint(tmp_path)
    loaded = load_parameters(checkpoint, Shard(), dtype=torch.float32, device=CPU, dequantize=True)
    for copy, original in (
        ("model.layers.2.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.2.shared_head.head.weight", "lm_head.weight"),
    ):
        assert loaded[copy] is loaded[original]


def test_mtp_layers_can_be_left_out(tmp_path: Path) -> None:
    write_checkpoint(TINY_V3, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    loaded = load_parameters(
        checkpoint, Shard(), dtype=torch.float32, device=CPU, dequantize=True, mtp=False
    )
    assert not [name for name in loaded if ".layers.2." in name]
    assert "lm_head.weight" in loaded


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    """Headers of some writers are not padded to 8 bytes."""
    write_checkpoint(TINY_V2, tmp_path, seed=2)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    odd = size + 1 if size % 2 == 0 else size
    file.write_bytes(
        odd.to_bytes(8, "little")
        + content[8 : 8 + size]
        + b" " * (odd - size)
        + content[8 + size :]
    )
    checkpoint = open_checkpoint(tmp_path)
    loaded = load_parameters(checkpoint, Shard(), dtype=torch.float32, device=CPU, dequantize=True)
    assert torch.equal(loaded["lm_head.weight"], load_file(file)["lm_head.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv",
        "model.layers.0.input_layernorm.weight",
    ],
)
def test_infinite_scales_and_vectors_are_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(TINY_FP8, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, file)
    checkpoint = open_checkpoint(tmp_path)
    loaded = load_parameters(checkpoint, Shard(), dtype=torch.float32, device=CPU, dequantize=False)
    with pytest.raises(CheckpointError, match="infinities or NaN") as caught:
        list(loaded.values())
    assert name in str(caught.value)


def test_loaded_tensors_do_not_keep_the_file(tmp_path: Path) -> None:
    """A tensor that is a view of the mapped file would change with it."""
    write_checkpoint(TINY_V2, tmp_path)
    loaded = load_parameters(
        open_checkpoint(tmp_path), Shard(), dtype=torch.float32, device=CPU, dequantize=True
    )
    sizes = [value.untyped_storage().nbytes() for value in loaded.values()]  # type: ignore[union-attr]
    assert sizes == [value.numel() * 4 for value in loaded.values()]  # type: ignore[union-attr]


def test_the_embedded_model_opens() -> None:
    checkpoint = open_checkpoint(embedded_path())
    assert checkpoint.spec.num_mtp_layers == 1
    assert checkpoint.spec.weight_format.block == (128, 128)
