"""The number formats that a config.json states: which its matrices have, and which are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fathom.errors import CheckpointError
from fathom.spec.fields import ConfigFields
from fathom.spec.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FP8_BLOCK,
    INT4_GROUPS,
    INT8_CHANNEL,
    Format,
    int4_group,
)
from fathom.spec.stored import Packing

METHODS = ("fp8", "awq", "gptq", "w8a8_int8", "compressed-tensors")

_DTYPES = {"bfloat16": BFLOAT16, "float32": FLOAT32, "float16": FLOAT16}
# Modules that DeepSeek's FP8 checkpoints keep in bfloat16 anyway.
_NEVER_QUANTISED = ("lm_head", "embed_tokens", "gate", "eh_proj", "head", "norm")
# Patterns of names: literals, sets, and quantifiers of one character, so that matching is quick.
_PATTERN = re.compile(r"(?:[\w\-.^$|?]|\\[.dwDW\-]|\[[\w\-]+\]|\((?:\?:)?|\)|(?<!\))[*+]){1,200}")
_MAX_QUANTIFIERS = 6


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How a checkpoint stores its matrices: `format`, except modules that one of the regular
    expressions `kept` finds, which are not quantised."""

    format: Format
    packing: Packing | None = None
    kept: tuple[str, ...] = ()


def parse_dtype(fields: ConfigFields) -> Format:
    """The format of what is not quantised. Raises: CheckpointError for one that is not known."""
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    value = fields.get(name)
    if value is None:
        return BFLOAT16
    if isinstance(value, str) and value.removeprefix("torch.") in _DTYPES:
        return _DTYPES[value.removeprefix("torch.")]
    raise fields.fail(name, f"one of {', '.join(_DTYPES)}")


def parse_quantization(fields: ConfigFields, dtype: Format) -> StoredFormat:
    """What the fields of a config.json say; `dtype` where the checkpoint is not quantised.

    Raises: CheckpointError for a method or setting that is not implemented.
    """
    if fields.get("compression_config") is not None:
        raise fields.fail("compression_config", "none, but quantization_config in its place")
    section = fields.section("quantization_config", {"weight_block_size": [128, 128]})
    if section is None:
        return StoredFormat(dtype)
    method = section.choice("quant_method", METHODS)
    if method == "fp8":
        return _fp8(section)
    if method == "awq":
        return _awq(section)
    if method == "gptq":
        return _gptq(section)
    return _w8a8(section) if method == "w8a8_int8" else _compressed(section)


def _fp8(section: ConfigFields) -> StoredFormat:
    section.refuse("fmt", ("e4m3", None), "weights are e4m3")
    section.refuse("activation_scheme", ("dynamic", None), "static scales are not implemented")
    section.refuse("scale_fmt", (None, "ue8m0", "float"), "scales are read as float32")
    if section.get("weight_block_size") not in ([128, 128], (128, 128)):
        raise section.fail("weight_block_size", "[128, 128]")
    kept = section.get("modules_to_not_convert") or section.get("ignored_layers") or []
    if not isinstance(kept, list) or any(
        str(one).removesuffix(".weight").rpartition(".")[2] not in _NEVER_QUANTISED for one in kept
    ):
        raise section.fail("modules_to_not_convert", "none beyond what DeepSeek's own FP8 keeps")
    return StoredFormat(FP8_BLOCK)


def _awq(section: ConfigFields) -> StoredFormat:
    """AutoAWQ's config; older files say w_bit and q_group_size."""
    section.refuse("w_bit" if section.get("bits") is None else "bits", (4,), "weights have 4 bits")
    section.refuse("zero_point", (True,), "weights without zero points are not implemented")
    version = section.get("version")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise section.fail("version", "gemm: other orders of bits are not implemented")
    old = section.get("group_size") is None and section.get("q_group_size") is not None
    group = _group(section, "q_group_size" if old else "group_size")
    return StoredFormat(group, "awq", _contained(section, "modules_to_not_convert"))


def _gptq(section: ConfigFields) -> StoredFormat:
    section.refuse("bits", (4,), "weights have 4 bits")
    section.refuse("desc_act", (False, None), "inputs in the order of activations: not implemented")
    section.refuse("checkpoint_format", (None, "gptq", "gptq_v2"), "other packings are unknown")
    section.refuse("is_marlin_format", (None, False), "other packings are unknown")
    section.refuse("pack_dtype", (None, "int32"), "eight values share 32 bits")
    section.refuse("lm_head", (None, False), "a quantised head is not implemented")
    for name in ("dynamic", "modules_in_block_to_quantize"):
        if section.get(name):
            raise section.fail(name, "none: settings of single modules are not implemented")
    packing: Packing = "gptq_v2" if section.get("checkpoint_format") == "gptq_v2" else "gptq"
    kept = _contained(section, "modules_to_not_convert")
    return StoredFormat(_group(section, "group_size"), packing, kept)


def _w8a8(section: ConfigFields) -> StoredFormat:
    """Int8 rows as in the channel-wise INT8 checkpoints of DeepSeek-R1."""
    if section.get("quant_description"):
        raise section.fail("quant_description", "none: name modules that are kept in ignore")
    return StoredFormat(INT8_CHANNEL, kept=_contained(section, "ignore"))


def _compressed(section: ConfigFields) -> StoredFormat:
    """compressed-tensors: one group of settings for all linear layers."""
    section.refuse("format", ("int-quantized",), "other formats are not implemented")
    section.refuse("kv_cache_scheme", (None,), "a quantised cache is not implemented")
    sparsity = section.section("sparsity_config", {})
    if sparsity is not None and sparsity.values and sparsity.get("format") != "dense":
        raise section.fail("sparsity_config", "none: sparse weights are not implemented")
    groups = section.section("config_groups", {})
    if groups is None or len(groups.values) != 1:
        raise section.fail("config_groups", "one group of settings")
    group = groups.section(next(iter(groups.values)), {})
    if group is None or group.get("targets") != ["Linear"]:
        raise section.fail("config_groups", "a group whose targets are [Linear]")
    weights, rows = group.section("weights", {}), group.section("input_activations", {})
    if weights is None:
        raise group.fail("weights", "a JSON object")
    weights.refuse("strategy", ("channel",), "one scale for each row")
    weights.refuse("dynamic", (False, None), "scales are stored")
    if rows is not None:
        rows.refuse("strategy", ("token",), "one scale for each token")
        rows.refuse("dynamic", (True,), "static scales are not implemented")
    for one in (weights, rows):
        if one is not None:
            one.refuse("num_bits", (8,), "values are int8")
            one.refuse("type", ("int",), "values are int8")
            one.refuse("symmetric", (True,), "zero points of int8 are not implemented")
    group.refuse("output_activations", (None,), "quantised outputs are not implemented")
    return StoredFormat(INT8_CHANNEL, kept=_matched(section, "ignore"))


def _group(section: ConfigFields, name: str) -> Format:
    size = section.count(name, minimum=-1)
    if size not in INT4_GROUPS:
        raise section.fail(name, f"one of {', '.join(map(str, INT4_GROUPS))}")
    return int4_group(size)


def _names(section: ConfigFields, name: str) -> list[str]:
    listed = section.get(name)
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(one, str) and one for one in listed):
        raise section.fail(name, "a list of module names")
    return listed


def _contained(section: ConfigFields, name: str) -> tuple[str, ...]:
    """Modules whose name contains an entry are kept: the rule of AWQ and of w8a8_int8."""
    return tuple(
        _pattern(section, name, one) if one.startswith("re:") else re.escape(one)
        for one in _names(section, name)
    )


def _matched(section: ConfigFields, name: str) -> tuple[str, ...]:
    """Modules of exactly this name are kept, or that a `re:` entry matches from its start."""
    return tuple(
        _pattern(section, name, one) if one.startswith("re:") else f"^{re.escape(one)}$"
        for one in _names(section, name)
    )


def _pattern(section: ConfigFields, name: str, entry: str) -> str:
    pattern = entry.removeprefix("re:")
    error: CheckpointError = section.fail(name, "a simple pattern after `re:`", found=entry)
    if not _PATTERN.fullmatch(pattern) or len(re.findall(r"[*+?]", pattern)) > _MAX_QUANTIFIERS:
        raise error
    try:
        re.compile(pattern)
    except re.error as wrong:
        raise error from wrong
    return f"^(?:{pattern})"
