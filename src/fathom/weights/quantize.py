"""A checkpoint written again with its matrices in int8 or int4, in published layouts.

int8 is the channel-wise layout of DeepSeek-R1's INT8 checkpoints, int4 that of AWQ ("gemm"), whose
rounding here looks at the weights only: nothing is calibrated on text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from fathom.errors import CheckpointError, ConfigError
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import FP8_BLOCK, INT4_GROUPS
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard
from fathom.spec.params import ParamSpec
from fathom.weights.index import INDEX_NAME
from fathom.weights.manifest import MANIFEST_NAME
from fathom.weights.open import Checkpoint
from fathom.weights.place import convert
from fathom.weights.save import MAX_SHARD_BYTES, save_checkpoint

Target = Literal["int8", "int4"]

# What goes with the weights. Programs do not: nothing of a checkpoint is executed.
_COPIED = (".json", ".txt", ".model", ".jinja", ".md")
_NOT_COPIED = ("config.json", INDEX_NAME, MANIFEST_NAME)


def quantization_config(spec: ModelSpec, target: Target, group_size: int) -> dict[str, object]:
    """The quantization_config of `spec`'s model in a published layout.

    Int4 keeps kv_b, which keys and values of all cached tokens pass through, and matrices that
    whole groups do not fit. Raises: ConfigError where experts are among them.
    """
    mtp = ["eh_proj"] if spec.num_mtp_layers else []
    if target == "int8":
        return {"quant_method": "w8a8_int8", "is_dynamic": True, "ignore": ["lm_head", *mtp]}
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *mtp, "kv_b_proj", *_misfits(spec, group_size)],
    }


def quantized_config(
    config: Mapping[str, object], spec: ModelSpec, target: Target, group_size: int
) -> dict[str, object]:
    """The config.json of the quantised checkpoint of the one that `config` and `spec` describe."""
    return {
        **config,
        # A conversion may have left MTP layers out.
        "num_nextn_predict_layers": spec.num_mtp_layers,
        "quantization_config": quantization_config(spec, target, group_size),
    }


def quantize_checkpoint(
    source: Checkpoint,
    path: Path,
    *,
    target: Target,
    group_size: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `source` into the directory `path`, which must be empty or absent, and copy its
    tokenizer and templates. `say` hears of each layer.

    Raises: ConfigError, CheckpointError.
    Cost: one parameter in memory, with float32 copies of it.
    """
    config = quantized_config(source.config, source.spec, target, group_size)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"{path} is in the way",
            found="a directory with files" if path.is_dir() else "a file",
            wanted="a directory that is empty or does not exist",
        )
    rows = {row.name: row for row in source.table}
    layers: set[int | None] = set()

    def make(row: ParamSpec) -> torch.Tensor | QTensor:
        if row.layer not in layers:
            layers.add(row.layer)
            say("embedding" if row.layer is None else f"layer {row.layer}")
        stored = rows[row.name]
        if stored.copy_of is not None:
            stored = rows[stored.copy_of]
        return convert(row.name, source.read(stored, Shard()), row.format)

    save_checkpoint(config, path, make, max_shard_bytes=max_shard_bytes)
    _copy_companions(source.path, path)


def _misfits(spec: ModelSpec, group_size: int) -> list[str]:
    """Parts of names that single out matrices which groups of `group_size` do not fit."""
    # FP8 quantises the same matrices.
    blocked = replace(spec, weight_format=FP8_BLOCK, packing=None, kept=())
    matrices = {
        (row.role, row.shape): row
        for row in parameter_table(blocked)
        if row.format.block is not None and row.role != "kv_b"
    }
    found: list[str] = []
    for row in matrices.values():
        num_rows, columns = row.shape
        if columns % group_size == 0 and num_rows % 8 == 0:
            continue
        if row.expert is not None:
            sizes = [str(size) for size in INT4_GROUPS if columns % size == 0]
            raise ConfigError(
                "--group-size",
                found=f"{group_size}, and experts of {num_rows} outputs and {columns} inputs",
                wanted=" or ".join(sizes) if sizes and num_rows % 8 == 0 else "int8 for this model",
            )
        found.append(".".join(row.name.split(".")[-3:-1]))
    return list(dict.fromkeys(found))


def _copy_companions(source: Path, path: Path) -> None:
    try:
        for file in sorted(source.iterdir()):
            is_text = file.suffix in _COPIED or file.name.upper().startswith("LICENSE")
            if is_text and file.name not in _NOT_COPIED and file.is_file():
                shutil.copyfile(file, path / file.name)
    except OSError as error:
        raise CheckpointError(
            f"files beside the weights of {source} cannot be copied", found=str(error)
        ) from error
