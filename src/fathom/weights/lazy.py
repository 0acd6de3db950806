"""Parameters that are read when they are taken, so that a model can be built in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence

import torch

from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format
from fathom.spec.params import ParamSpec

Value = torch.Tensor | QTensor


class LazyParameters(MutableMapping[str, Value]):
    """A rank's parameters by their names in the table; each is read when it is asked for.

    What `[]` and `pop` give belongs to the caller. `borrow` takes a parameter too, but may give a
    view of the mapped file: it must not be written, and holds the file mapped while it lives. The
    MTP layers' copies of embedding and head are the same tensors as the originals, which are held
    here until the last of them is taken. Other parameters are read again each time.
    """

    def __init__(
        self,
        rows: Sequence[ParamSpec],
        place: Callable[[ParamSpec], Value],
        borrow: Callable[[ParamSpec], Value | PackedInt4],
        held: Callable[[ParamSpec], Format],
    ) -> None:
        self._rows = {row.name: row for row in rows}
        self._left = dict.fromkeys(self._rows)
        self._place, self._borrow, self._held = place, borrow, held
        self._given: dict[str, Value] = {}
        # Originals that have copies: how many names of each are left, and its value once read.
        self._uses: dict[str, int] = {}
        self._shared: dict[str, Value] = {}
        for row in rows:
            if row.copy_of is not None:
                self._uses[row.copy_of] = self._uses.get(row.copy_of, 1) + 1

    def __getitem__(self, name: str) -> Value:
        if name not in self._left:
            raise KeyError(name)
        if name in self._given:
            return self._given[name]
        row = self._rows[name]
        source = row.copy_of or name
        if source not in self._uses:
            return self._place(row)
        if source not in self._shared:
            self._shared[source] = self._place(self._rows[source])
        return self._shared[source]

    def __setitem__(self, name: str, value: Value) -> None:
        self._left[name] = None
        self._given[name] = value

    def __delitem__(self, name: str) -> None:
        del self._left[name]
        self._given.pop(name, None)
        row = self._rows.get(name)
        source = name if row is None else row.copy_of or name
        if source in self._uses:
            self._uses[source] -= 1
            if not self._uses[source]:
                self._shared.pop(source, None)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the parameter and drop it.
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._left))

    def __len__(self) -> int:
        return len(self._left)

    def held_format(self, name: str) -> Format:
        """The format in which a parameter is to be held. Raises: KeyError."""
        return self._held(self._rows[name])

    def borrow(self, name: str) -> Value | PackedInt4:
        """As `pop`, but where the file holds plain numbers, or what is wanted, a view of it, as
        stored: the borrower brings it into its format.

        Raises: KeyError; CheckpointError where the file's values are not sound.
        """
        row = self._rows.get(name)
        source = name if row is None else row.copy_of or name
        if row is None or name in self._given or source in self._shared:
            return self.pop(name)
        if name not in self._left:
            raise KeyError(name)
        value = self._borrow(self._rows[source])
        del self[name]
        return value
