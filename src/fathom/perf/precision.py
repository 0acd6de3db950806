"""The formats in which a plan may hold weights and cache, and those that a device computes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fathom.errors import ConfigError
from fathom.spec.dense import DenseSpec
from fathom.spec.families import Model
from fathom.spec.formats import (
    BFLOAT16,
    FP8_BLOCK,
    FP8_LATENT,
    FP8_PLAIN,
    INT8_CHANNEL,
    Format,
    int4_group,
)
from fathom.spec.hardware import Cluster
from fathom.spec.held import Quantization

WEIGHTS = ("bf16", "fp8", "int8", "int4")
CACHES = ("bf16", "fp8")
FORMATS: Mapping[str, Format] = {
    "bf16": BFLOAT16,
    "fp8": FP8_BLOCK,
    "int8": INT8_CHANNEL,
    "int4": int4_group(128),
}
_STORED_AS = {"fp8_block": "fp8", "int8": "int8", "int4": "int4"}
_HELD: Mapping[str, Quantization] = {"fp8": "fp8", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class Precision:
    """A format of weights. `is_exact`: answers are those of the published weights."""

    name: str
    format: Format
    quantization: Quantization | None
    dequantize: bool
    is_exact: bool


def precisions(model: Model, cluster: Cluster, asked: str | None) -> tuple[Precision, ...]:
    """The formats to consider, the published one first where the GPU computes in it.

    Raises: ConfigError for a format that is asked and that the GPU has no units for.
    """
    stored = _STORED_AS.get(model.weight_format.name, "bf16")
    names = [stored, *(name for name in WEIGHTS if name != stored)]
    lacking = [] if cluster.gpu.has_fp8 else ["fp8"]
    lacking += [] if cluster.gpu.int8_ops else ["int8"]
    if asked in lacking:
        raise ConfigError(
            f"weights in {asked}",
            found=f"{cluster.gpu.name} has no {asked.upper()} arithmetic",
            wanted=", ".join(name for name in WEIGHTS if name not in lacking),
        )
    if cluster.is_host and asked == "bf16" != stored:
        raise ConfigError(
            "weights in bf16",
            found=f"weights stored in {stored}, which the CPU kernels read as they are",
            wanted=", ".join(name for name in names if name != "bf16"),
        )
    found = []
    for name in names:
        is_useless = name == "bf16" != stored and stored not in lacking
        if name == asked or (asked is None and name not in lacking and not is_useless):
            is_stored = name == stored
            # Sixteen bits hold what fewer did; asked for by name, any format is what is wanted.
            is_exact = is_stored or name == "bf16" or asked is not None
            found.append(
                Precision(
                    name=name,
                    format=model.weight_format if is_stored else FORMATS[name],
                    quantization=None if is_stored else _HELD.get(name),
                    dequantize=name == "bf16" and not is_stored,
                    is_exact=is_exact,
                )
            )
    return tuple(found)


def caches(model: Model, asked: str | None) -> tuple[Format, ...]:
    """The formats of the cache to consider."""
    fp8 = FP8_PLAIN if isinstance(model, DenseSpec) else FP8_LATENT
    both = {"bf16": BFLOAT16, "fp8": fp8}
    return tuple(both.values()) if asked is None else (both[asked],)
