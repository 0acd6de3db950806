"""Random weights: made on a device without a file, or written as a checkpoint.

A value depends on the seed, the name of its tensor, its place in it, and the kind of device whose
generator drew it; not on the shard, so that ranks agree without reading anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path

import torch

from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard
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
                part_of(whole, row.owned(shard)),
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
    if param.packing is not None:
        return random_packed(param, seed=seed, device=device).unpacked()
    generator = _generator(param, seed, device)
    if param.format.name == "int8":
        return _random_int8(param, generator)
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


def random_packed(param: ParamSpec, *, seed: int, device: torch.device = _CPU) -> PackedInt4:
    """A packed int4 parameter as it is stored, every level equally likely, with zero points in the
    middle; drawn without float values. Its values are those of `random_parameter`."""
    assert param.packing is not None
    generator = _generator(param, seed, device)
    shapes = {part.role: part.shape for part in param.parts}
    # Seven or eight, whatever the order in a word; less one where that is how they are stored.
    zero = _random_words(shapes["zero"], torch.int32, generator) & 0x11111111
    zero += 0x66666666 if param.packing == "gptq" else 0x77777777
    scale = _random_scale(shapes["scale"], 16, param.shape[1], generator).to(torch.float16)
    values = _random_words(shapes["values"], torch.int32, generator)
    return PackedInt4(values, scale, zero, param.packing, param.format)


def _generator(param: ParamSpec, seed: int, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{param.copy_of or param.name}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "little"))


def _random_int8(param: ParamSpec, generator: torch.Generator) -> QTensor:
    """As `random_packed`, in int8 rows."""
    scale_shape = param.format.scale_shape(param.shape)
    assert scale_shape is not None
    scale = _random_scale(scale_shape, 256, param.shape[1], generator)
    return QTensor(_random_words(param.shape, torch.int8, generator), scale, param.format)


def _random_words(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Integers whose every bit is random, drawn 64 at a time because that is far quicker."""
    num_bytes = prod(shape) * dtype.itemsize
    drawn = torch.empty(-(-num_bytes // 8), dtype=torch.int64, device=generator.device)
    drawn.random_(-(2**63), None, generator=generator)
    return drawn.view(torch.uint8)[:num_bytes].view(dtype).view(shape)


def _random_scale(
    shape: tuple[int, ...], num_levels: int, num_inputs: int, generator: torch.Generator
) -> torch.Tensor:
    """Scales near that with which equally likely levels, of variance (levels^2 - 1) / 12, keep the
    variance of what passes through."""
    scale = torch.rand(shape, generator=generator, device=generator.device).mul_(0.4).add_(0.8)
    return scale.mul_(sqrt(12.0 / ((num_levels**2 - 1) * num_inputs)))


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

    def make(row: ParamSpec) -> torch.Tensor | QTensor | PackedInt4:
        if row.packing is not None:
            return random_packed(row, seed=seed)
        return random_parameter(row, seed=seed)

    save_checkpoint(config, path, make, max_shard_bytes=max_shard_bytes)
