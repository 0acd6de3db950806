"""Checks of tensors before a kernel gets their memory."""

from __future__ import annotations

import torch

from fathom.errors import EngineError


def rows_of(x: torch.Tensor, dtype: torch.dtype, name: str) -> int:
    """The stride of a matrix's rows, in elements.

    Raises: EngineError where `x` is not a matrix of `dtype` on the CPU with unbroken rows.
    """
    if x.dtype != dtype or x.dim() != 2 or not x.is_cpu:
        raise _wrong(x, name, f"a matrix of {dtype} with unbroken rows")
    stride, step = x.stride()
    if step != 1 and x.shape[1] > 1:
        raise _wrong(x, name, f"a matrix of {dtype} with unbroken rows")
    return stride


def pointer(x: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> int:
    """The address of a tensor without gaps.

    Raises: EngineError where it is not of `dtype` and `shape` on the CPU, or has gaps.
    """
    if x.dtype != dtype or x.shape != shape or not x.is_contiguous() or not x.is_cpu:
        raise _wrong(x, name, f"{dtype} {list(shape)} without gaps")
    return x.data_ptr()


def _wrong(x: torch.Tensor, name: str, wanted: str) -> EngineError:
    found = f"{x.dtype} {list(x.shape)} with strides {list(x.stride())} on {x.device}"
    return EngineError(f"{name} of a CPU kernel", found=found, wanted=wanted)
