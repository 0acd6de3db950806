"""What a model is, by name or from the directory of a checkpoint, without reading its tensors.

For plans: the directory needs a config.json only. Where an index lies beside it, its total is
compared with what the config says, so that a plan does not count another model's bytes.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

from fathom.errors import CheckpointError
from fathom.spec.families import Model, parameters, parse_model
from fathom.spec.known import KnownModel, count_parameters, find_model
from fathom.spec.model import ModelSpec
from fathom.spec.params import ParamSpec
from fathom.weights.index import INDEX_NAME, read_json

# Stored beside the parameters by some tools: orders of groups, inverse frequencies.
_TOLERANCE = 0.01


def describe_model(name_or_path: str) -> KnownModel:
    """The known model of this name, or what the config.json in this directory describes.

    Raises: ConfigError for an unknown name; CheckpointError for a directory without a config.json
    that can be read, or whose index is of another size.
    """
    path = Path(name_or_path)
    if not path.is_dir():
        return find_model(name_or_path)
    spec = parse_model(read_json(path / "config.json"))
    if (path / INDEX_NAME).is_file():
        spec = _checked(spec, path)
    main, mtp = count_parameters(spec)
    return KnownModel(
        name=path.resolve().name,
        aliases=(),
        spec=spec,
        main_parameters=main,
        mtp_parameters=mtp,
    )


def _checked(spec: Model, path: Path) -> Model:
    """The spec with the MTP layers that are stored. Raises: CheckpointError where sizes differ."""
    index = read_json(path / INDEX_NAME)
    metadata, names = index.get("metadata"), index.get("weight_map")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(names, dict):
        raise CheckpointError(f"{INDEX_NAME}: weight_map", wanted="an object of tensors and files")
    if isinstance(spec, ModelSpec):
        first, last = spec.num_layers, spec.num_layers + spec.num_mtp_layers
        stored = [n for n in range(first, last) if f"model.layers.{n}.eh_proj.weight" in names]
        spec = replace(spec, num_mtp_layers=len(stored))
    rows = [row for row in parameters(spec) if row.copy_of is None or row.name in names]
    wanted = sum(map(_stored_bytes, rows))
    if isinstance(total, int | float) and abs(total - wanted) > _TOLERANCE * wanted:
        raise CheckpointError(
            f"{INDEX_NAME}: metadata: total_size",
            found=f"{total:,.0f} bytes",
            wanted=f"about {wanted:,} bytes, as config.json says",
            fix="the config.json and the index of one checkpoint",
        )
    return spec


def _stored_bytes(row: ParamSpec) -> int:
    """Bytes of the tensors that stand for a parameter; packed zero points are half those held."""
    if row.packing is None:
        return row.format.num_bytes(row.shape)
    parts = (part for part in row.parts if not part.is_optional)
    return sum(prod(part.shape) * (4 if "I32" in part.dtypes else 2) for part in parts)
