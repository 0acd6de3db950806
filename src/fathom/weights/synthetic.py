"""Random weights: made on a device without a file, or written as a checkpoint.

A value depends on the seed, the name of its tensor, its place in it, and the kind of device whose
generator drew it; not on the shard, so that ranks agree without reading anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import torch

from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard, owned_slice
from fathom.spec.params import CORRECTION_BIAS, ParamSpec
from fathom.weights.open import is_mtp
from fathom.weights.place import part_of, place, torch_dtype
from fathom.weights.save import MAX_SHARD_BYTES, save_checkpoint

_CPU = torch.device("cpu")


def random_parameters(
    spec: ModelSpec,
    shard: Shard,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    dequantize: bool = False,
    mtp: bool = True,
    quantization: Quantization | None = None,
) -> dict[str, torch.Tensor | QTensor]:
    """What `load_parameters` would give for a checkpoint of random weights, made on `device`.

    Cost: beyond the result, a few float32 copies of one whole parameter at a time.
    """
    made: dict[str, torch.Tensor | QTensor] = {}
    rows = [row for row in parameter_table(spec) if mtp or not is_mtp(row, spec)]
    for row in rows:
        if row.copy_of is None:
            whole = random_parameter(row, seed=seed, device=device)
            made[row.name] = place(
                row,
                part_of(whole, owned_slice(row.shard, row.shape, shard)),
                shard,
                dtype=dtype,
                device=device,
                dequantize=dequantize,
                quantization=quantization,
            )
    for row in rows:
        if row.copy_of is not None:
            made[row.name] = made[row.copy_of]
    return made


def random_parameter(
    param: ParamSpec, *, seed: int, device: torch.device = _CPU
) -> torch.Tensor | QTensor:
    """The whole of one parameter as a checkpoint would store it.

    Matrices keep the variance of what passes through them (1 / inputs), norms are near 1, the
    router's correction bias is small beside its scores, so that deep models stay finite.
    """
    digest = hashlib.sha256(f"{seed}:{param.copy_of or param.name}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "little"))
    if param.format.name in ("int8", "int4"):
        return _random_integers(param, generator, device)
    values = torch.randn(param.shape, generator=generator, device=device, dtype=torch.float32)
    if param.role == CORRECTION_BIAS:
        values.mul_(0.1)
    elif len(param.shape) == 1:
        values.mul_(0.05).add_(1.0)
    elif param.role not in ("embed", "mtp_embed"):
        values.mul_(1.0 / sqrt(param.shape[1]))
    if param.format.block is not None:
        return quantize_fp8(values, param.format)
    return values.to(torch_dtype(param.format))


def _random_integers(param: ParamSpec, generator: torch.Generator, device: torch.device) -> QTensor:
    """A quantised matrix whose every level is equally likely, drawn without float values."""
    rows, columns = param.shape
    is_int4 = param.format.name == "int4"
    width = columns // 2 if is_int4 else columns
    # A word at a time: drawing bytes singly takes eight times as long.
    words = torch.empty(-(-rows * width // 8), dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    data = words.view(torch.uint8)[: rows * width].view(rows, width)
    scale_shape = param.format.scale_shape(param.shape)
    assert scale_shape is not None
    scale = torch.rand(scale_shape, generator=generator, device=device).mul_(0.4).add_(0.8)
    # Equally likely levels 0 to n - 1 have variance (n^2 - 1) / 12.
    scale *= sqrt(12.0 / ((255.0 if is_int4 else 65535.0) * columns))
    if not is_int4:
        return QTensor(data.view(torch.int8), scale, param.format)
    zero = torch.randint(7, 9, scale_shape, generator=generator, device=device, dtype=torch.uint8)
    return QTensor(data, scale.to(torch.float16), param.format, zero=zero)


def write_checkpoint(
    config: Mapping[str, object],
    path: Path,
    *,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint of random weights for the model that `config` describes.

    Raises: CheckpointError where the config is not one that fathom reads.
    """
    save_checkpoint(
        config, path, lambda row: random_parameter(row, seed=seed), max_shard_bytes=max_shard_bytes
    )
