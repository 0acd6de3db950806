"""Checkpoints written in Hugging Face's layout: config.json, shards and their index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch

from fathom.errors import CheckpointError
from fathom.ops.quant.packed import PackedInt4, pack_awq
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import Format
from fathom.spec.params import ParamSpec
from fathom.spec.stored import StoredPart
from fathom.weights.index import INDEX_NAME, SINGLE_NAME
from fathom.weights.place import torch_dtype

Value = torch.Tensor | QTensor | PackedInt4
Make = Callable[[ParamSpec], Value]
MAX_SHARD_BYTES = 4 * 2**30

_PLAIN_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ITEM_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}
# The data of a safetensors file starts at a multiple of this, so that it can be mapped.
_ALIGNMENT = 8


def save_checkpoint(
    config: Mapping[str, object],
    path: Path,
    make: Make,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint of the model that `config` describes into the directory `path`.

    `make` gives each row of the parameter table its values in the row's shape, quantised ones in
    its format: int4 packed as the row is, or as QTensor for AWQ's layout. Rows that are copies are
    written too, as DeepSeek does. Files that are there are overwritten; one shard without an index
    where everything fits into it. A shard has its name once it is whole, and config.json is written
    last.

    Raises: CheckpointError where `make` gives another shape, format or packing than the row's.
    Cost: one parameter in memory.
    """
    table = parameter_table(parse_config(config))
    path.mkdir(parents=True, exist_ok=True)
    shards = _shards(table, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, rows in enumerate(shards, 1):
        name = SINGLE_NAME
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        _write_shard(path / name, rows, make)
        weight_map.update({part.name: name for row in rows for part in _written(row)})
    if len(shards) > 1:
        total = sum(_num_bytes(row) for row in table)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(path / INDEX_NAME, index)
    else:
        (path / INDEX_NAME).unlink(missing_ok=True)
    _write_json(path / "config.json", config)


def _shards(table: Sequence[ParamSpec], most_bytes: int) -> list[list[ParamSpec]]:
    """The table in runs of at most `most_bytes`; a larger tensor has a shard to itself."""
    shards: list[list[ParamSpec]] = [[]]
    held = 0
    for row in table:
        size = _num_bytes(row)
        if shards[-1] and held + size > most_bytes:
            shards.append([])
            held = 0
        shards[-1].append(row)
        held += size
    return shards


def _write_shard(file: Path, rows: Sequence[ParamSpec], make: Make) -> None:
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(_header(rows))
            for row in rows:
                for part, tensor in zip(_written(row), _stored(row, make(row)), strict=True):
                    if tuple(tensor.shape) != part.shape:
                        raise CheckpointError(
                            f"{part.name} cannot be written",
                            found=str(list(tensor.shape)),
                            wanted=str(list(part.shape)),
                        )
                    _write_tensor(stream, tensor)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _header(rows: Sequence[ParamSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for row in rows:
        for part in _written(row):
            stop = start + _part_bytes(row.format, part)
            entries[part.name] = {
                "dtype": _type_of(row.format, part),
                "shape": part.shape,
                "data_offsets": [start, stop],
            }
            start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _written(row: ParamSpec) -> Iterator[StoredPart]:
    return (part for part in row.parts if not part.is_optional)


def _type_of(format: Format, part: StoredPart) -> str:
    return _PLAIN_TYPES.get(format.name, part.dtypes[0])


def _part_bytes(format: Format, part: StoredPart) -> int:
    return prod(part.shape) * _ITEM_BYTES[_type_of(format, part)]


def _num_bytes(row: ParamSpec) -> int:
    """Bytes of everything that is stored for one row."""
    return sum(_part_bytes(row.format, part) for part in _written(row))


def _write_tensor(stream: BinaryIO, tensor: torch.Tensor) -> None:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    stream.write(flat.numpy().data)


def _stored(row: ParamSpec, value: Value) -> tuple[torch.Tensor, ...]:
    """The tensors that stand for one row in a file, in the order of its parts."""
    if isinstance(value, PackedInt4):
        return value.values, value.scale, value.zero
    is_blocked = row.format.block is not None
    if tuple(value.shape) != row.shape or isinstance(value, QTensor) is not is_blocked:
        raise CheckpointError(
            f"{row.name} cannot be written",
            found=f"{type(value).__name__} of shape {list(value.shape)}",
            wanted=f"{'QTensor' if is_blocked else 'Tensor'} of shape {list(row.shape)}",
        )
    if isinstance(value, torch.Tensor):
        return (value.to(torch_dtype(row.format)),)
    if value.format != row.format or row.packing not in (None, "awq"):
        raise CheckpointError(
            f"{row.name} cannot be written",
            found=f"{value.format} for {row.packing or 'no'} packing",
            wanted=f"{row.format}, packed as awq where it is packed",
        )
    if row.packing is None:
        return value.tensors
    packed = pack_awq(value)
    return packed.values, packed.scale, packed.zero


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
