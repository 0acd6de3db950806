"""Moves parameters from the loader's dictionary into a model, as its backend wants to hold them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from fathom.errors import CheckpointError
from fathom.ops.api import Backend, Held, Weight
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import BFLOAT16, INT8_CHANNEL, Format
from fathom.spec.model import Mla

# By checkpoint name. `weights.lazy.LazyParameters` also lends what it reads, and says in which
# format each is to be held.
Params = MutableMapping[str, torch.Tensor | QTensor]


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

    def _take(self, name: str, shape: tuple[int, ...], *, is_lent: bool = False) -> Weight:
        """A parameter, removed; `is_lent`: it may be a view of a file, as stored."""
        if name not in self._params:
            raise CheckpointError(f"parameter {name}", found="nothing", wanted=f"shape {shape}")
        lend = getattr(self._params, "borrow", None) if is_lent else None
        found: Weight = self._params.pop(name) if lend is None else lend(name)
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"parameter {name}",
                found=f"shape {tuple(found.shape)}",
                wanted=f"shape {shape} on this rank",
            )
        return found

    def _format(self, names: Sequence[str]) -> Format | None:
        """The format in which matrices that are to be joined are held; None for the compute dtype
        or, where they are stored quantised, their own."""
        held_format = getattr(self._params, "held_format", None)
        if held_format is None:
            return None
        formats = {held_format(name) for name in names}
        if len(formats) > 1:
            is_quantised = all(format.block is not None for format in formats)
            formats = {INT8_CHANNEL} if is_quantised else {BFLOAT16}
        (format,) = formats
        return format if format.block is not None else None

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter as a plain tensor in the compute dtype.

        Raises: CheckpointError where it is absent or has another shape.
        """
        found = self._take(name, shape)
        if isinstance(found, torch.Tensor):
            return found.to(self.dtype)
        return found.dequantize(self.dtype)

    def exact(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter in float32, not rounded to the compute dtype. Raises: as `tensor`."""
        found = self._take(name, shape)
        return found.float() if isinstance(found, torch.Tensor) else found.dequantize(torch.float32)

    def matrix(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], *, is_gated: bool = False
    ) -> Held:
        """Several matrices of equal width, each under the one before, for `linear` or `mlp`.
        Raises: as `tensor`."""
        format = self._format(names)
        parts = self._lent(names, shapes)
        return self._ops.hold(parts, dtype=self.dtype, format=format, is_gated=is_gated)

    def _lent(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Sequence[Weight]:
        pairs = zip(names, shapes, strict=True)
        return [self._take(name, shape, is_lent=True) for name, shape in pairs]

    def experts(
        self,
        names: Sequence[Sequence[str]],
        shapes: Sequence[tuple[int, int]],
        *,
        is_gated: bool = False,
    ) -> Held:
        """One matrix an expert, of the expert's `names` as in `matrix`. Raises: as `tensor`."""
        format = self._format(names[0])

        def parts() -> Iterator[Sequence[Weight]]:
            # The next expert is read, and converted where it has to be, while the backend works on
            # this one.
            with ThreadPoolExecutor(1, thread_name_prefix="weights") as reader:
                coming = reader.submit(self._lent, names[0], shapes)
                for group in names[1:]:
                    here, coming = coming.result(), reader.submit(self._lent, group, shapes)
                    yield here
                yield coming.result()

        return self._ops.hold_experts(
            parts(), len(names), dtype=self.dtype, format=format, is_gated=is_gated
        )

    def kv_b(self, name: str, num_heads: int, mla: Mla) -> Held:
        """The up-projections of this rank's keys and values. Raises: as `tensor`."""
        shape = (num_heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank)
        format = self._format((name,))
        value = self._take(name, shape, is_lent=True)
        return self._ops.hold_kv_b(value, mla, dtype=self.dtype, format=format)
