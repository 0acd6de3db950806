"""Reads the built library's code: AMX cannot be run here, but its configuration can be looked at.

What GCC 12's own intrinsic asks of the compiler lets it drop the stores that fill a configuration,
which then is whatever lies on the stack. Ours is a constant: the bytes at the address that every
`ldtilecfg` reads must be those of the manual's format (SDM volume 1, table "memory area layout for
LDTILECFG").
"""

from __future__ import annotations

import re
import struct
import subprocess

from fathom.ops.backends.cpu import library


def objdump(*options: str) -> str:
    command = ["objdump", *options, str(library.PATH)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def read_bytes(address: int, count: int) -> bytes:
    bounds = (f"--start-address={address}", f"--stop-address={address + count}")
    text = objdump("-s", "-j", ".rodata", *bounds)
    rows = re.findall(r"^ [0-9a-f]+ ((?:[0-9a-f]{2,8} ){1,4})", text, re.MULTILINE)
    return bytes.fromhex("".join(rows).replace(" ", ""))


def test_every_configuration_is_constant_and_full() -> None:
    code = objdump("-d", "--no-show-raw-insn")
    loads = re.findall(r"ldtilecfg (.*)", code)
    assert len(loads) >= 4, "one for each format's tiles"
    addresses = [re.match(r"0x[0-9a-f]+\(%rip\)\s+# ([0-9a-f]+)", load) for load in loads]
    assert all(addresses), f"not a constant: {loads}"
    wanted = struct.pack("<BB14x8H16x8B8x", 1, 0, *[64] * 8, *[16] * 8)
    for address in {int(match.group(1), 16) for match in addresses if match}:
        assert read_bytes(address, 64) == wanted
    assert len(re.findall(r"\btilerelease\b", code)) >= len(loads), "tiles are given back"


def test_products_name_their_tiles_in_order() -> None:
    """Sums in tiles 0 to 3, activations in 4 and 5 as the first factor, weights as the second."""
    code = objdump("-d", "--no-show-raw-insn")
    dots = re.findall(r"\b(tdp\w+)\s+%tmm(\d),%tmm(\d),%tmm(\d)", code)
    assert {name for name, *_ in dots} == {"tdpbf16ps", "tdpbssd", "tdpbsud"}
    two = {("0", "4", "6"), ("1", "4", "7"), ("2", "5", "6"), ("3", "5", "7")}
    one = {("0", "4", "5"), ("1", "4", "6"), ("2", "4", "7"), ("3", "4", "5")}
    for wanted in ("tdpbf16ps", "tdpbssd", "tdpbsud"):
        # AT&T's order of operands: weights, activations, sums.
        found = {(c, a, b) for name, b, a, c in dots if name == wanted}
        assert found == one | two
