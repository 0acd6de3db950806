"""Moves parameters from the loader's dictionary into a model, as its backend wants to hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fathom.errors import CheckpointError
from fathom.ops.api import Backend, Held, Weight
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.model import Mla

Params = dict[str, Weight]


class ParamSource:
    """Takes parameters out of a dictionary one by one, checked, for `ops` to hold.

    What is taken is removed from the dictionary, so that a tensor that is copied into what the
    backend holds is freed at once.
    """

    def __init__(self, params: Params, ops: Backend, dtype: torch.dtype) -> None:
        self._params, self._ops = params, ops
        self.dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._params

    def _take(self, name: str, shape: tuple[int, ...]) -> Weight:
        found = self._params.pop(name, None)
        if found is None:
            raise CheckpointError(f"parameter {name}", found="nothing", wanted=f"shape {shape}")
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"parameter {name}",
                found=f"shape {tuple(found.shape)}",
                wanted=f"shape {shape} on this rank",
            )
        return found

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter as a plain tensor in the compute dtype.

        Raises: CheckpointError where it is absent or has another shape.
        """
        found = self._take(name, shape)
        return found.dequantize(self.dtype) if isinstance(found, QTensor) else found.to(self.dtype)

    def exact(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter in float32, not rounded to the compute dtype. Raises: as `tensor`."""
        found = self._take(name, shape)
        return found.dequantize(torch.float32) if isinstance(found, QTensor) else found.float()

    def matrix(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], *, is_gated: bool = False
    ) -> Held:
        """Several matrices of equal width, each under the one before, for `linear` or `mlp`.
        Raises: as `tensor`."""
        parts = [self._take(name, shape) for name, shape in zip(names, shapes, strict=True)]
        return self._ops.hold(parts, dtype=self.dtype, is_gated=is_gated)

    def experts(
        self,
        names: Sequence[Sequence[str]],
        shapes: Sequence[tuple[int, int]],
        *,
        is_gated: bool = False,
    ) -> Held:
        """One matrix an expert, of the expert's `names` as in `matrix`. Raises: as `tensor`."""

        def parts() -> Iterator[Sequence[Weight]]:
            for group in names:
                yield [self._take(name, shape) for name, shape in zip(group, shapes, strict=True)]

        return self._ops.hold_experts(parts(), len(names), dtype=self.dtype, is_gated=is_gated)

    def kv_b(self, name: str, num_heads: int, mla: Mla) -> Held:
        """The up-projections of this rank's keys and values. Raises: as `tensor`."""
        shape = (num_heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank)
        return self._ops.hold_kv_b(self._take(name, shape), mla, dtype=self.dtype)
