"""The paged cache of latents, one tensor for all layers."""

from __future__ import annotations

from math import prod
from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import torch

from fathom.errors import CapacityError
from fathom.spec.formats import FP8_LATENT, kv_cell_bytes
from fathom.spec.plan import DeploymentPlan
from fathom.weights.open import torch_dtype


def allocate_cache(plan: DeploymentPlan, device: torch.device) -> torch.Tensor:
    """Zeros [layers, pages, page_size, latent_dim]: the model's layers, then those of multi-token
    prediction where the plan drafts. In FP8: uint8 [layers, pages, page_size, bytes of a cell].

    Raises: CapacityError where the device does not give that much.
    """
    model = plan.model
    num_layers = model.num_layers + (model.num_mtp_layers if plan.num_drafts else 0)
    cell = kv_cell_bytes(plan.kv_dtype, model.mla.kv_lora_rank, model.mla.rope_dim)
    dtype = torch.uint8 if plan.kv_dtype == FP8_LATENT else torch_dtype(plan.kv_dtype)
    shape = (num_layers, plan.num_pages, plan.page_size, cell // dtype.itemsize)
    num_bytes = prod(shape) * dtype.itemsize
    try:
        if device.type == "cpu":
            return torch.from_numpy(_untouched(num_bytes)).view(dtype).view(shape)
        return torch.zeros(shape, dtype=dtype, device=device)
    except (RuntimeError, OSError, OverflowError) as error:  # torch's, and the system's
        raise CapacityError(
            f"a KV cache of {num_bytes} bytes",
            found=str(error).splitlines()[0],
            fix="lower --gpu-memory-utilization or --kv-cache-memory-bytes",
        ) from error


def _untouched(num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Zeros that the system commits page by page once they are written: torch's own would clear,
    and take, the whole pool at the start. Not by huge pages, each of which is 2 MiB to clear, of
    every layer at once, in the middle of a prompt's step: `bench/replay.py` shows it in the P99."""
    memory = mmap(-1, num_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    memory.madvise(MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)
