"""Checkpoints into tensors: each rank maps the files and copies only the slices that it owns.

Nothing is unpickled and nothing of a checkpoint is executed.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch

from fathom.errors import CheckpointError
from fathom.ops.quant.packed import PackedInt4
from fathom.ops.quant.qtensor import QTensor
from fathom.spec.formats import Format
from fathom.spec.held import Quantization, fitting_group
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard
from fathom.spec.params import ParamSpec
from fathom.spec.stored import PartRole
from fathom.weights.header import StoredTensor
from fathom.weights.index import CheckpointIndex, read_index
from fathom.weights.lazy import LazyParameters
from fathom.weights.place import format_of, part_of, place
from fathom.weights.place import torch_dtype as torch_dtype

logger = logging.getLogger(__name__)

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "I32": torch.int32,
}
# Bytes of the files that may count as this process's memory before they are let go of.
_MAX_RESIDENT_BYTES = 2**28


class Checkpoint:
    """An open checkpoint: what it holds, and reading of parts of it.

    Files are mapped when first read and unmapped when the checkpoint, and everything that was read
    without a copy, is dropped. Pages that were read are given back to the system as reading goes
    on; views stay valid, since the system reads the file again.
    """

    def __init__(self, index: CheckpointIndex) -> None:
        self.path: Path = index.path
        self.config: Mapping[str, object] = index.config
        self.spec: ModelSpec = index.spec
        self.table: tuple[ParamSpec, ...] = index.table
        self._tensors: Mapping[str, StoredTensor] = index.tensors
        self._maps: dict[Path, tuple[mmap.mmap, torch.Tensor]] = {}
        self._resident_bytes = 0

    def read(self, param: ParamSpec, shard: Shard) -> torch.Tensor | QTensor:
        """As `read_stored`, packed int4 in QTensor's layout."""
        value = self.read_stored(param, shard)
        return value.unpacked() if isinstance(value, PackedInt4) else value

    def read_stored(self, param: ParamSpec, shard: Shard) -> torch.Tensor | QTensor | PackedInt4:
        """The part of `param` that `shard` owns, as stored.

        A view of the mapped file where that is possible, which must not be written. A cut through
        groups of int4 gives smaller groups, and where none fit float32 values.

        Raises: CheckpointError where scales or a vector hold infinities or NaN.
        """
        self._let_go(param)
        parts: dict[PartRole, torch.Tensor] = {
            part.role: self._view(self._tensors[part.name])
            for part in param.parts
            if part.name in self._tensors
        }
        for part in param.parts:
            if part.role == "scale" or len(param.shape) == 1:
                _check_finite(self._tensors[part.name], parts[part.role])
        owned = param.owned(shard)
        if param.packing is not None:
            return self._read_packed(param, parts, owned)
        if "scale" not in parts:
            return parts["values"][owned]
        scale = parts["scale"].to(torch.float32)
        return part_of(QTensor(parts["values"], scale, param.format), owned)

    def is_stored(self, param: ParamSpec) -> bool:
        """Whether the checkpoint holds `param`; only copies may be absent."""
        return param.parts[0].name in self._tensors

    def _read_packed(
        self, param: ParamSpec, parts: Mapping[PartRole, torch.Tensor], owned: tuple[slice, ...]
    ) -> torch.Tensor | QTensor | PackedInt4:
        assert param.packing is not None
        assert param.format.block is not None
        if "order" in parts:
            _check_order(param, parts["order"], param.format.block[1])
        rows, columns = owned
        packed = PackedInt4(
            parts["values"], parts["scale"], parts["zero"], param.packing, param.format
        )
        format = _cut_groups(param, columns)
        if format is not None:
            return packed.part(rows, columns, format)
        values = packed.unpacked().slice(rows, slice(None))
        return values.dequantize(torch.float32)[:, columns]

    def _view(self, stored: StoredTensor) -> torch.Tensor:
        """The whole stored tensor, a view of the mapped file."""
        if stored.file not in self._maps:
            try:
                with stored.file.open("rb") as stream:
                    # Pages are private to this process once written; nothing writes them.
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{stored.file.name} cannot be mapped", found=str(error)
                ) from error
            self._maps[stored.file] = mapped, torch.frombuffer(mapped, dtype=torch.uint8)
        raw = self._maps[stored.file][1][stored.start : stored.stop]
        dtype = _DTYPES[stored.dtype]
        if stored.start % dtype.itemsize:
            # Files of some writers are not aligned; a view needs it.
            raw = raw.clone()
        return raw.view(dtype).view(stored.shape)

    def _let_go(self, param: ParamSpec) -> None:
        """Give pages back before `param` is read, where many were read since the last time."""
        self._resident_bytes += param.format.num_bytes(param.shape)
        if self._resident_bytes < _MAX_RESIDENT_BYTES:
            return
        self._resident_bytes = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped, _ in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the directory `path`, its headers checked against the parameter table.

    Raises: CheckpointError that names the file or tensor at fault.
    """
    return Checkpoint(read_index(path))


def load_parameters(
    checkpoint: Checkpoint,
    shard: Shard,
    *,
    dtype: torch.dtype,
    device: torch.device,
    dequantize: bool,
    mtp: bool = True,
    quantization: Quantization | None = None,
) -> LazyParameters:
    """Every parameter by its checkpoint name: the part that `shard` owns, on `device`, read from
    the files when it is taken.

    With `quantization`, matrices are held in that format, whatever is stored, by the rules of
    `spec/held.py`. Without, quantised ones stay so unless `dequantize` or a cut through blocks
    forbids it (`ParamSpec.local_format`). The rest is converted to `dtype`, except the router's
    correction bias, which stays float32. `mtp` False leaves the MTP layers out.

    Cost: one parameter's part at a time, and float32 copies of it where it is converted.
    """
    rows = [row for row in checkpoint.table if mtp or not is_mtp(row, checkpoint.spec)]

    def take(param: ParamSpec) -> torch.Tensor | QTensor:
        return place(
            param,
            checkpoint.read(param, shard),
            shard,
            dtype=dtype,
            device=device,
            dequantize=dequantize,
            quantization=quantization,
        )

    def held(param: ParamSpec) -> Format:
        return param.local_format(
            shard, format_of(dtype), dequantize=dequantize, quantization=quantization
        )

    def borrow(param: ParamSpec) -> torch.Tensor | QTensor | PackedInt4:
        value = checkpoint.read_stored(param, shard)
        if value.device == device:
            if isinstance(value, torch.Tensor):
                return value
            if value.format == held(param):
                if isinstance(value, PackedInt4):
                    return value
                return QTensor(value.data, value.scale, value.format, zero=value.zero)
        return take(param)

    logger.info("weights open: parameters=%d rank=%d", len(rows), shard.rank)
    return LazyParameters(rows, take, borrow, held)


def is_mtp(param: ParamSpec, spec: ModelSpec) -> bool:
    """Whether a parameter belongs to an MTP layer."""
    return param.layer is not None and param.layer >= spec.num_layers


def _cut_groups(param: ParamSpec, columns: slice) -> Format | None:
    """The stored groups, or smaller ones where `columns` are a part that cuts through them."""
    assert param.format.block is not None
    width = columns.stop - columns.start
    return param.format if width == param.shape[1] else fitting_group(width, param.format.block[1])


def _check_order(param: ParamSpec, order: torch.Tensor, group: int) -> None:
    if not order.equal(torch.arange(len(order), dtype=order.dtype) // group):
        raise CheckpointError(
            f"{param.name}: g_idx puts inputs into groups out of their order",
            wanted=f"groups of {group} inputs that follow each other",
            fix="quantise the model again with desc_act false",
        )


def _check_finite(stored: StoredTensor, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} holds infinities or NaN",
            wanted="finite numbers",
            fix="fetch this file again",
        )
