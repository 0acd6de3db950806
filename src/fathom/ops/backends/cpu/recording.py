"""Kernel calls noted down once and repeated on the same memory: what a decode step costs the host.

Building a step out of tensors, views and checks can take Python as long as small kernels run. A
recording repeats the calls alone, all of them in one call of the library.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from array import array
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fathom.ops.backends.cpu.library import check

_CALL_WORDS = 16  # csrc/replay.h, Call: the function and its arguments


class RecordingMemory:
    """What the tensors of recordings lie in, which run one at a time. Each recording may write all
    of it: its results stand until another one runs.

    Calls are repeated in their order. So a tensor that died while they were recorded leaves its
    memory to later ones of as many bytes a row, as it would in a step that is not recorded. Blocks
    have room for `rows` rows, whatever the recording's own number.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._blocks: dict[int, list[npt.NDArray[np.uint8]]] = {}  # by bytes of a row
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._leases: list[weakref.ref[npt.NDArray[np.uint8]]] = []

    def restart(self) -> None:
        """Give all blocks to a new recording; tensors of others do not give theirs back to it."""
        self._leases.clear()
        self._free = {size: list(blocks) for size, blocks in self._blocks.items()}

    def new(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of up to `rows` rows whose values are not set. Its memory is free again when
        the last tensor on it is gone."""
        row_bytes = prod(shape[1:]) * dtype.itemsize
        free = self._free.setdefault(row_bytes, [])
        if not free:
            block = torch.empty(self.rows * row_bytes, dtype=torch.uint8).numpy()
            self._blocks.setdefault(row_bytes, []).append(block)
            free.append(block)
        block = free.pop()
        leased = block[: shape[0] * row_bytes]  # lives as long as the tensor's storage
        self._leases.append(weakref.ref(leased, lambda _: free.append(block)))
        return torch.frombuffer(leased, dtype=dtype).view(shape)


class Recording:
    """Stands in for the library while calls are noted down. The addresses in them stay good while
    the memory and the inputs that are not from it are kept, by whoever replays."""

    def __init__(self, kernels: Any, memory: RecordingMemory) -> None:
        memory.restart()
        self.new = memory.new
        self._kernels = kernels
        self._calls = array("q")
        self._arguments: list[tuple[Any, ...]] = []  # for the structures among them

    def __getattr__(self, name: str) -> Callable[..., bytes | None]:
        function = getattr(self._kernels, name)
        address = ctypes.cast(getattr(self._kernels, f"{name}_call"), ctypes.c_void_p).value

        def call(*arguments: Any) -> bytes | None:
            words = [address or 0, *map(_word, arguments, function.argtypes)]
            self._calls.extend([*words, *[0] * (_CALL_WORDS - len(words))])
            self._arguments.append(arguments)
            failed: bytes | None = function(*arguments)
            return failed

        return call

    def replay(self) -> None:
        """Run the calls again, as one: the interpreter is free for other threads meanwhile.

        Raises: EngineError where one fails.
        """
        address, num_words = self._calls.buffer_info()
        check(self._kernels.fathom_replay(address, num_words // _CALL_WORDS))


def _word(argument: Any, kind: Any) -> int:
    """An argument as csrc/replay.h takes it."""
    if kind is ctypes.c_float:
        word: int = struct.unpack("q", struct.pack("d", argument))[0]
        return word
    if isinstance(argument, ctypes.Structure):
        return ctypes.addressof(argument)
    return int(argument)
