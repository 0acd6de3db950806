"""A checkpoint of DeepSeek-V3's full size, in files without blocks on disk, against its published
number of bytes: headers, index and table of 92 thousand tensors, and one rank's slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.parallel import Layout, Shard
from fathom.weights.index import INDEX_NAME
from fathom.weights.open import open_checkpoint
from tests.weights.tiny_checkpoints import FP8

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "max_position_embeddings": 163840,
    "quantization_config": FP8,
}
DTYPES = {"fp8_block": "F8_E4M3", "bfloat16": "BF16", "float32": "F32"}
SHARD_BYTES = 4_300_000_000


def _write_sparse(path: Path) -> None:
    """What the published repository looks like to a reader of headers."""
    weight_map: dict[str, str] = {}
    header: dict[str, Any] = {}
    end = number = 0

    def flush() -> None:
        nonlocal header, end, number
        number += 1
        name = f"model-{number:05d}.safetensors"
        text = json.dumps(header).encode()
        with (path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        assert (path / name).stat().st_blocks * 512 < 2**24, "this file system fills holes"
        weight_map.update(dict.fromkeys(header, name))
        header, end = {}, 0

    for row in parameter_table(parse_config(CONFIG)):
        for name, dtype, shape, size in (
            (row.name, DTYPES[row.format.name], row.shape, row.num_elements * row.format.bits // 8),
            (row.scale_name, "F32", row.format.scale_shape(row.shape), 0),
        ):
            if name is None or shape is None:
                continue
            size = size or 4 * shape[0] * shape[1]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        if end > SHARD_BYTES:
            flush()
    flush()
    (path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(CONFIG))


def test_deepseek_v3_opens_and_a_rank_reads_its_part(tmp_path: Path) -> None:
    _write_sparse(tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert abs(sum(file.stat().st_size for file in files) - 688_586_727_753) < 3_000_000
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec.num_mtp_layers == 1
    rows = {row.name: row for row in checkpoint.table}
    assert len(rows) == 46_183
    shard = Shard(Layout(tp=8), 7)
    down = checkpoint.read(rows["model.layers.60.mlp.experts.255.down_proj.weight"], shard)
    assert isinstance(down, QTensor)
    assert (tuple(down.shape), tuple(down.scale.shape)) == ((7168, 256), (56, 2))
    head = checkpoint.read(rows["lm_head.weight"], shard)
    assert isinstance(head, torch.Tensor)
    assert tuple(head.shape) == (16160, 7168)
