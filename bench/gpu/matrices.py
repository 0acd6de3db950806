"""FP8 block-scaled products by kernel libraries, at the shapes of one TP8 rank of DeepSeek-V3."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fathom.ops.quant.fp8_block import quantize_fp8
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.reference import ReferenceBackend
from gpu.measure import Row, Settings, check_and_time, failure

# Rows and columns of the weights that a rank multiplies by.
_LINEARS = {
    "q_a": (1536, 7168),
    "kv_a": (576, 7168),
    "q_b": (3072, 1536),
    "o": (7168, 2048),
    "shared_gate_up": (512, 7168),
    "shared_down": (7168, 256),
}
_GROUPED = {"expert_gate_up": (512, 7168), "expert_down": (7168, 256)}
_NUM_EXPERTS, _GROUP_ROWS = 32, 128
_VARIANTS = 12


@dataclass(frozen=True, slots=True)
class Product:
    """x [M, K] bf16 and in FP8 rows of 128 columns; weight [N, K] or [E, N, K] in FP8 blocks."""

    x: torch.Tensor
    rows: QTensor
    weight: QTensor


Call = Callable[[Product], torch.Tensor]


def run_deep_gemm(settings: Settings) -> list[Row]:
    """DeepGEMM: dense products, then products grouped by expert."""
    return _dense_rows("deep_gemm fp8_gemm_nt", settings, _deep_gemm) + _grouped_rows(settings)


def run_flashinfer(settings: Settings) -> list[Row]:
    """flashinfer's product for Hopper, which quantises the activations itself."""
    return _dense_rows("flashinfer fp8_blockscale_gemm_sm90", settings, _flashinfer)


def run_sgl_kernel(settings: Settings) -> list[Row]:
    """sgl_kernel's block-scaled product."""
    return _dense_rows("sgl_kernel fp8_blockwise_scaled_mm", settings, _sgl_kernel)


def run_torch(settings: Settings) -> list[Row]:
    """torch in bf16, and the reference op on FP8: what the libraries are to be compared with."""
    rows = []
    for name, call in (("torch bf16", _bf16), ("reference fp8", _reference_op)):
        rows += _dense_rows(name, settings, lambda call=call: call)
    return rows


def _dense_rows(name: str, settings: Settings, load: Callable[[], Call]) -> list[Row]:
    rows = []
    for linear, (height, width) in _LINEARS.items():
        for batch in settings.pick((1, 8, 32, 512), (3,)):
            height, width = settings.pick((height, width), (128, 256))
            shape = {"m": batch, "n": height, "k": width}
            try:
                call = _exact if settings.is_dry else load()
            except Exception as error:
                rows.append({"name": f"{name} {linear}", "shape": shape} | failure(error))
                continue
            variants = [
                _inputs((height, width), batch, seed, settings.device)
                for seed in range(settings.pick(_VARIANTS, 2))
            ]
            expected = _exact(variants[0])
            rows.append(
                check_and_time(
                    f"{name} {linear}",
                    shape,
                    call,
                    variants,
                    expected,
                    settings,
                    num_bytes=height * width + batch * (width + 2 * height),
                    num_flops=2 * batch * height * width,
                )
            )
    return rows


def _inputs(shape: tuple[int, ...], batch: int, seed: int, device: torch.device) -> Product:
    generator = torch.Generator(device=device).manual_seed(seed)
    weight = torch.randn(shape, generator=generator, device=device)
    x = torch.randn((batch, shape[-1]), generator=generator, device=device).to(torch.bfloat16)
    return Product(x, ReferenceBackend().quantize_rows(x), quantize_fp8(weight))


def _exact(inputs: Product) -> torch.Tensor:
    """The product of the quantised values in float32: what an FP8 kernel should give."""
    return inputs.rows.dequantize(torch.float32) @ inputs.weight.dequantize(torch.float32).mT


def _bf16(inputs: Product) -> torch.Tensor:
    return inputs.x @ inputs.weight.dequantize(torch.bfloat16).mT


def _reference_op(inputs: Product) -> torch.Tensor:
    return ReferenceBackend().linear(inputs.x, inputs.weight)


def _deep_gemm() -> Call:
    deep_gemm = importlib.import_module("deep_gemm")

    def call(inputs: Product) -> torch.Tensor:
        height = inputs.weight.shape[-2]
        out = torch.empty(len(inputs.x), height, dtype=torch.bfloat16, device=inputs.x.device)
        scales = deep_gemm.get_mn_major_tma_aligned_tensor(inputs.rows.scale)
        weight = inputs.weight.data, inputs.weight.scale
        deep_gemm.fp8_gemm_nt((inputs.rows.data, scales), weight, out)
        return out

    return call


def _flashinfer() -> Call:
    gemm = importlib.import_module("flashinfer.gemm")

    def call(inputs: Product) -> torch.Tensor:
        out: torch.Tensor = gemm.fp8_blockscale_gemm_sm90(
            inputs.x, inputs.weight.data, None, inputs.weight.scale
        )
        return out

    return call


def _sgl_kernel() -> Call:
    sgl_kernel = importlib.import_module("sgl_kernel")

    def call(inputs: Product) -> torch.Tensor:
        scales = inputs.rows.scale.mT.contiguous().mT  # columns first, as the kernel wants them
        out: torch.Tensor = sgl_kernel.fp8_blockwise_scaled_mm(
            inputs.rows.data,
            inputs.weight.data.mT,
            scales,
            inputs.weight.scale.mT,
            torch.bfloat16,
        )
        return out

    return call


def _grouped_rows(settings: Settings) -> list[Row]:
    """Products grouped by expert: 128 rows each, the least that the layout allows."""
    name = "deep_gemm grouped contiguous"
    rows = []
    for linear, (height, width) in _GROUPED.items():
        height, width = settings.pick((height, width), (128, 256))
        experts, each = settings.pick((_NUM_EXPERTS, _GROUP_ROWS), (2, 3))
        shape = {"experts": experts, "m": each, "n": height, "k": width}
        try:
            call = _exact_grouped if settings.is_dry else _deep_gemm_grouped()
        except Exception as error:
            rows.append({"name": f"{name} {linear}", "shape": shape} | failure(error))
            continue
        variants = [
            _inputs((experts, height, width), experts * each, seed, settings.device)
            for seed in range(2)
        ]
        rows.append(
            check_and_time(
                f"{name} {linear}",
                shape,
                call,
                variants,
                _exact_grouped(variants[0]),
                settings,
                num_bytes=experts * (height * width + each * (width + 2 * height)),
                num_flops=2 * experts * each * height * width,
            )
        )
    return rows


def _exact_grouped(inputs: Product) -> torch.Tensor:
    experts = inputs.weight.shape[0]
    x = inputs.rows.dequantize(torch.float32).unflatten(0, (experts, -1))
    return (x @ inputs.weight.dequantize(torch.float32).mT).flatten(0, 1)


def _deep_gemm_grouped() -> Call:
    deep_gemm = importlib.import_module("deep_gemm")

    def call(inputs: Product) -> torch.Tensor:
        experts, height, _ = inputs.weight.shape
        total, device = len(inputs.x), inputs.x.device
        out = torch.empty(total, height, dtype=torch.bfloat16, device=device)
        owner = torch.arange(experts, dtype=torch.int32, device=device)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            (inputs.rows.data, deep_gemm.get_mn_major_tma_aligned_tensor(inputs.rows.scale)),
            (inputs.weight.data, inputs.weight.scale),
            out,
            owner.repeat_interleave(total // experts),
        )
        return out

    return call
