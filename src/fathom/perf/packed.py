"""Sizes of matrices as the CPU kernels pack them: strips of 64 outputs, padded (csrc/matrix.h)."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.spec.formats import Format

_STRIP, _STEP, _FP8_BLOCK = 64, 64, 128  # csrc/matrix.h
_HUGE_PAGE, _ALIGNMENT = 2**21, 64  # ops/backends/cpu/matrices.py


@dataclass(frozen=True, slots=True)
class Packed:
    """Matrices as csrc/matrix.h lays them out: `count` of `rows` outputs and `columns` inputs."""

    role: str
    format: Format
    rows: int
    columns: int
    count: int = 1
    is_gated: bool = False

    @property
    def group(self) -> int:
        """Inputs that share a scale of int4; 0 for other formats."""
        return self.format.block[1] if self.format.name == "int4" and self.format.block else 0

    @property
    def is_plain(self) -> bool:
        """Whether it is multiplied with bfloat16 rows."""
        return not self.group and self.format.name != "int8"

    @property
    def padded(self) -> int:
        """Inputs, padded."""
        return _round_up(self.columns, _STEP)

    @property
    def strips(self) -> int:
        """Strips of 64 outputs."""
        halves = 2 if self.is_gated else 1
        return halves * -(-self.rows // halves // _STRIP)

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices."""
        values = self.padded * _STRIP
        if self.group:
            unit = max(self.group, _STEP)
            each = unit * _STRIP // 2 + unit // self.group * _STRIP * 3
            strip = -(-self.padded // unit) * each
        elif self.format.name == "int8":
            strip = values + _STRIP * 8
        elif self.format.name == "fp8_block":
            strip = values + _round_up(-(-self.columns // _FP8_BLOCK) * 4, 64)
        else:
            strip = 2 * values
        return self.count * self.strips * strip

    @property
    def held_bytes(self) -> int:
        """Bytes of the memory that is asked of the system for them."""
        size = self.num_bytes
        return size + (_HUGE_PAGE if size >= 4 * _HUGE_PAGE else _ALIGNMENT)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of activations made ready for a product."""
        if self.group:
            columns = _round_up(self.padded, max(self.group, _STEP))
            return columns + _round_up(8 * columns // self.group, 64)
        return self.padded * (2 if self.is_plain else 1) + 64


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to
