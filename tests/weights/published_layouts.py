"""The values of quantised checkpoints, multiplied out in numpy from the layouts' descriptions:

AWQ: https://github.com/casper-hansen/AutoAWQ, awq/utils/packing_utils.py;
GPTQ: https://github.com/AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear;
int8 rows: https://github.com/vllm-project/compressed-tensors, "int-quantized".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.weights.tiny_checkpoints import TINY_V3

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
GPTQ_V2 = {**GPTQ, "checkpoint_format": "gptq_v2"}
W8A8 = {"quant_method": "w8a8_int8", "is_dynamic": True, "ignore": ["lm_head"]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*kv_b_proj$"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": {
                "dynamic": True,
                "num_bits": 8,
                "strategy": "token",
                "symmetric": True,
                "type": "int",
            },
            "output_activations": None,
            "weights": {
                "dynamic": False,
                "group_size": None,
                "num_bits": 8,
                "strategy": "channel",
                "symmetric": True,
                "type": "int",
            },
        }
    },
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "awq": {**TINY_V3, "quantization_config": AWQ},
    "awq128": {
        **TINY_V3,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "quantization_config": {**AWQ, "group_size": 128},
    },
    "gptq": {**TINY_V3, "quantization_config": GPTQ},
    "gptq_v2": {**TINY_V3, "moe_intermediate_size": 64, "quantization_config": GPTQ_V2},
    "w8a8": {**TINY_V3, "quantization_config": W8A8},
    "compressed": {**TINY_V3, "quantization_config": COMPRESSED},
}
# Nibble i of a word, from the lowest up, is this column of eight.
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name."""
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def stored_value(stored: dict[str, torch.Tensor], name: str, method: str) -> torch.Tensor:
    """The whole parameter `name` in float32."""
    module = name.removesuffix(".weight")
    if f"{module}.qweight" in stored:
        return torch.from_numpy(_int4(stored, module, method))
    values = stored[name].float()
    scale = stored.get(f"{name}_scale")
    return values if scale is None else values * scale.float()


def _int4(stored: dict[str, torch.Tensor], module: str, method: str) -> np.ndarray[Any, Any]:
    words, zeros, scales = (
        stored[f"{module}.{part}"].numpy() for part in ("qweight", "qzeros", "scales")
    )
    num_inputs = words.shape[0] * (1 if method == "awq" else 8)
    levels = np.empty((num_inputs, scales.shape[1]), np.int32)
    points = np.empty((scales.shape[0], scales.shape[1]), np.int32)
    for nibble in range(8):
        column = _AWQ_ORDER[nibble] if method == "awq" else nibble
        points[:, column::8] = (zeros >> (4 * nibble)) & 15
        if method == "awq":
            levels[:, column::8] = (words >> (4 * nibble)) & 15
        else:
            levels[nibble::8] = (words >> (4 * nibble)) & 15
    if method == "gptq":
        points = points + 1
    group = np.arange(num_inputs) // (num_inputs // scales.shape[0])
    values = (levels - points[group]).astype(np.float32) * scales.astype(np.float32)[group]
    return np.ascontiguousarray(values.T)
