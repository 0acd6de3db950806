"""Kernel calls noted down once and repeated on the same memory: what a decode step costs the host.

Building a step out of tensors, views and checks can take Python as long as small kernels run. A
recording repeats the calls alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fathom.ops.backends.cpu.library import check


class Recording:
    """Stands in for the library while calls are noted down. The pointers in them must stay good:
    results are kept here, inputs by whoever replays."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._calls: list[tuple[Callable[..., bytes | None], tuple[Any, ...]]] = []
        self._kept: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Callable[..., bytes | None]:
        function: Callable[..., bytes | None] = getattr(self._kernels, name)

        def call(*arguments: Any) -> bytes | None:
            self._calls.append((function, arguments))
            return function(*arguments)

        return call

    def keep(self, tensor: torch.Tensor) -> None:
        """Keep the memory of a result."""
        self._kept.append(tensor)

    def replay(self) -> None:
        """Run the calls again. Raises: EngineError where one fails."""
        for function, arguments in self._calls:
            failed = function(*arguments)
            if failed is not None:
                check(failed)
