"""Moves parameters from the loader's dictionary into a model, in the shapes that ops want."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch

from fathom.errors import CheckpointError
from fathom.ops.api import Weight
from fathom.ops.quant.qtensor import QTensor

Params = MutableMapping[str, Weight]


class ParamSource:
    """Takes parameters out of a dictionary one by one, checked and in the compute dtype.

    What is taken is removed from the dictionary, so that a tensor that is copied into a stack or a
    merged matrix is freed at once: the peak is the model plus one layer's stack.
    """

    def __init__(self, params: Params, dtype: torch.dtype) -> None:
        self._params = params
        self.dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._params

    def weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        """A matrix, quantised if it was stored so.

        Raises: CheckpointError where it is absent or has another shape.
        """
        found = self._take(name, shape)
        return found if isinstance(found, QTensor) else found.to(self.dtype)

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
        """A parameter as a plain tensor, dequantised where needed. Raises: as `weight`."""
        found = self.weight(name, shape)
        return found.dequantize(self.dtype) if isinstance(found, QTensor) else found

    def exact(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter in float32, not rounded to the compute dtype. Raises: as `weight`."""
        found = self._take(name, shape)
        return found.dequantize(torch.float32) if isinstance(found, QTensor) else found.float()

    def merged(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Weight:
        """Several matrices of equal width as one, each under the one before. Raises: as `weight`.

        Quantised ones stay so where no block would hold rows of two of them.
        """
        parts = [self.weight(name, shape) for name, shape in zip(names, shapes, strict=True)]
        return _merge_rows(parts, self.dtype)

    def stacked(self, names: Sequence[Sequence[str]], shapes: Sequence[tuple[int, int]]) -> Weight:
        """One matrix an expert, [E, N, K], merged from the expert's `names` as by `merged`."""
        first = self.merged(names[0], shapes)
        if isinstance(first, torch.Tensor):
            stack = first.new_empty(len(names), *first.shape)
            stack[0] = first
            for index, group in enumerate(names[1:], 1):
                stack[index] = self._plain(self.merged(group, shapes))
            return stack
        stacks = [one.new_empty(len(names), *one.shape) for one in first.tensors]
        for index, group in enumerate(names):
            part = first if index == 0 else self.merged(group, shapes)
            if not isinstance(part, QTensor) or (part.format, part.offset) != (
                first.format,
                first.offset,
            ):
                raise CheckpointError(
                    f"parameter {group[0]}",
                    found=part.format.name if isinstance(part, QTensor) else str(part.dtype),
                    wanted=f"{first.format.name}, like {names[0][0]}",
                )
            for stack, one in zip(stacks, part.tensors, strict=True):
                stack[index] = one
        return first.with_tensors(stacks)

    def _plain(self, weight: Weight) -> torch.Tensor:
        return weight.dequantize(self.dtype) if isinstance(weight, QTensor) else weight


def _merge_rows(parts: Sequence[Weight], dtype: torch.dtype) -> Weight:
    if len(parts) == 1:
        return parts[0]
    quantised = [part for part in parts if isinstance(part, QTensor)]
    if len(quantised) == len(parts) and _shares_blocks(quantised):
        joined = zip(*(part.tensors for part in quantised), strict=True)
        return quantised[0].with_tensors([torch.cat(tensors) for tensors in joined])
    return torch.cat(
        [part.dequantize(dtype) if isinstance(part, QTensor) else part for part in parts]
    )


def _shares_blocks(parts: Sequence[QTensor]) -> bool:
    """Whether the parts' blocks tile the merged matrix, the last part's edge aside."""
    first = parts[0]
    return all(
        part.format == first.format and part.offset == (0, first.offset[1]) for part in parts
    ) and all(part.shape[0] % part.block[0] == 0 for part in parts[:-1])
