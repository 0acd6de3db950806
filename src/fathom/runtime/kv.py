"""The paged cache of latents, one tensor for all layers."""

from __future__ import annotations

from math import prod

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
            # numpy's zeros come from the system, which commits memory page by page once it is
            # written: torch's own would clear, and take, the whole pool at the start.
            flat = np.zeros(num_bytes, dtype=np.uint8)
            return torch.from_numpy(flat).view(dtype).view(shape)
        return torch.zeros(shape, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:  # torch's out-of-memory errors, and numpy's
        raise CapacityError(
            f"a KV cache of {num_bytes} bytes",
            found=str(error).splitlines()[0],
            fix="lower --gpu-memory-utilization or --kv-cache-memory-bytes",
        ) from error
