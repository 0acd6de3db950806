"""A checkpoint's files, read as far as their headers and checked against the parameter table.

No torch: `fathom plan` starts without it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from fathom.errors import CheckpointError
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.model import ModelSpec
from fathom.spec.params import ParamSpec
from fathom.weights.header import StoredTensor, no_duplicates, read_header

logger = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_MAX_JSON_BYTES = 200_000_000
# Tables that old exporters stored although they follow from the config.
_DERIVED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True, slots=True)
class CheckpointIndex:
    """A checkpoint whose every tensor is in its place, as far as headers tell.

    `spec.num_mtp_layers` counts the MTP layers that are stored, which may be fewer than the
    config says: conversions often leave them out.
    """

    path: Path
    config: Mapping[str, object]
    spec: ModelSpec
    table: tuple[ParamSpec, ...]
    tensors: Mapping[str, StoredTensor]


def read_index(path: Path) -> CheckpointIndex:
    """The checked index of the checkpoint in the directory `path`. Reads headers only.

    Raises: CheckpointError that names the file or tensor at fault.
    """
    check_directory(path)
    config = read_json(path / "config.json")
    spec = parse_config(config)
    tensors = _stored_tensors(path)
    spec = _with_stored_mtp(spec, tensors)
    table = parameter_table(spec)
    _check_present(spec, table, tensors)
    for param in table:
        for part in param.parts:
            if part.name in tensors:
                _check_one(tensors[part.name], part.shape, part.dtypes)
    _check_extra(spec, table, tensors)
    return CheckpointIndex(path, config, spec, table, tensors)


def read_json(file: Path) -> dict[str, object]:
    """The JSON object in `file`. Raises: CheckpointError where there is none."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(
                str(file), found=f"{file.stat().st_size} bytes", wanted=f"{_MAX_JSON_BYTES} at most"
            )
        text = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.name} is missing from {file.parent}",
            wanted="the directory of a Hugging Face checkpoint",
            fix="give the directory that holds config.json and the .safetensors files",
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read", found=error.strerror or "") from error
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=no_duplicates)
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{file.name} is not UTF-8", found=str(error), fix="fetch this file again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.name} is not valid JSON", found=str(error), fix="fetch this file again"
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(file.name, found=type(parsed).__name__, wanted="a JSON object")
    return parsed


def check_directory(path: Path) -> None:
    """Raises: CheckpointError where `path` is no directory, with what may have been meant."""
    try:
        if not path.is_dir():
            raise _no_directory(path)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)[:200]} cannot be read", found=error.strerror or str(error)
        ) from error


def _no_directory(path: Path) -> CheckpointError:
    wanted = "a directory with the files of a checkpoint"
    if path.exists():
        return CheckpointError(f"{path} is a file", wanted=wanted, fix=f"give {path.parent}")
    if _REPOSITORY.match(str(path)) and not path.parent.exists():
        return CheckpointError(
            f"{path} is not a directory here",
            wanted=wanted,
            fix=f"fathom downloads nothing: hf download {path} --local-dir DIR, then give DIR",
        )
    near: Sequence[str] = ()
    if path.parent.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
        near = get_close_matches(path.name, siblings, 3)
    shown = ", ".join(str(path.parent / name) for name in near)
    return CheckpointError(
        f"{path} does not exist", wanted=wanted, fix=f"nearest: {shown}" if near else ""
    )


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from the index and its shards or from the single file."""
    if not (path / INDEX_NAME).is_file():
        return _merged([_single_file(path)])[0]
    weight_map = read_json(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_NAME}: weight_map", wanted="tensor names with their files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(
                f"{INDEX_NAME}: {name}", found=repr(file), wanted="the name of a file beside it"
            )
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (path / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(files)} files named in {INDEX_NAME} are missing",
            found=f"no {_some(missing)}",
            fix="fetch them",
        )
    tensors, homes = _merged([path / file for file in files])
    for name, file in weight_map.items():
        if name not in homes:
            raise CheckpointError(
                f"{INDEX_NAME} names a tensor that is in no file",
                found=f"{name} in {file}",
                fix="fetch the index and this file again, from the same revision",
            )
        if homes[name] != file:
            raise CheckpointError(
                f"{name} is in another file than {INDEX_NAME} says",
                found=homes[name],
                wanted=file,
                fix="files were swapped or renamed: fetch both again",
            )
    unlisted = [name for name in homes if name not in weight_map]
    if unlisted:
        raise CheckpointError(
            f"{len(unlisted)} tensors are missing from {INDEX_NAME}",
            found=_some([f"{name} in {homes[name]}" for name in unlisted]),
            fix="fetch the index and the files again, from the same revision",
        )
    return tensors


def _single_file(path: Path) -> Path:
    if (path / SINGLE_NAME).is_file():
        return path / SINGLE_NAME
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        found, fix = "shards without their index", f"fetch {INDEX_NAME} from the same place"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        found = "pickled weights, which can run code when read"
        fix = "get or make the safetensors files of this model"
    elif any(name.endswith(".gguf") for name in names):
        found, fix = "GGUF weights, which are not supported yet", "get its safetensors files"
    else:
        found, fix = "no weights", "fetch the checkpoint's .safetensors files"
    raise CheckpointError(
        f"{path} has no weights that can be served",
        found=found,
        wanted=f"{INDEX_NAME} with its shards, or {SINGLE_NAME}",
        fix=fix,
    )


def _merged(files: Sequence[Path]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of all files, and each one's file name."""
    tensors: dict[str, StoredTensor] = {}
    homes: dict[str, str] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{tensor.name} is stored twice",
                    found=f"in {homes[tensor.name]} and in {file.name}",
                    fix="fetch both files again, from the same revision",
                )
            tensors[tensor.name] = tensor
            homes[tensor.name] = file.name
    return tensors, homes


def _with_stored_mtp(spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> ModelSpec:
    """`spec` without the MTP layers that the checkpoint does not hold at all."""
    layers = range(spec.num_layers, spec.num_layers + spec.num_mtp_layers)
    stored = {int(match[1]) for match in map(_LAYER.match, tensors) if match}
    present = sum(layer in stored for layer in layers)
    if present < spec.num_mtp_layers:
        logger.info(
            "checkpoint holds fewer MTP layers than its config says: stored=%d config=%d",
            present,
            spec.num_mtp_layers,
        )
        return replace(spec, num_mtp_layers=present)
    return spec


def _check_present(
    spec: ModelSpec, table: Sequence[ParamSpec], tensors: Mapping[str, StoredTensor]
) -> None:
    wanted = [
        part.name
        for param in table
        for part in param.parts
        if not part.is_optional and not (param.copy_of and param.name not in tensors)
    ]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors are missing from the checkpoint",
            found=f"no {_some(missing)}",
            wanted=f"every tensor of a {spec.architecture} of {spec.num_layers} layers",
            fix="check that config.json belongs to these files, or fetch them again",
        )


def _check_one(stored: StoredTensor, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} has the wrong shape",
            found=str(list(stored.shape)),
            wanted=f"{list(shape)}, by config.json",
            fix="config.json and the weights belong to different models: fetch both again",
        )
    if stored.dtype not in dtypes:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} has the wrong number format",
            found=stored.dtype,
            wanted=" or ".join(dtypes),
            fix="check quantization_config in config.json: it must say how the weights are stored",
        )


def _check_extra(
    spec: ModelSpec, table: Sequence[ParamSpec], tensors: Mapping[str, StoredTensor]
) -> None:
    """Refuse tensors that nothing would use: they would have changed the answers."""
    known = {part.name for param in table for part in param.parts}
    extra = []
    for name in tensors:
        layer = _LAYER.match(name)
        is_mtp = layer is not None and int(layer[1]) >= spec.num_layers + spec.num_mtp_layers
        is_tied = spec.tie_embeddings and name == "lm_head.weight"
        if not (name in known or is_mtp or is_tied or _DERIVED.search(name)):
            extra.append(name)
    if extra:
        raise CheckpointError(
            f"{len(extra)} tensors of the checkpoint have no place in the model",
            found=_some(extra),
            wanted=f"the tensors of {spec.architecture}",
            fix="check that config.json belongs to these files",
        )


def _some(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
