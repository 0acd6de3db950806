"""How many examples the long property tests take: few by default, as many as are asked for."""

from __future__ import annotations

import os


def examples(default: int) -> int:
    """`default`, or FATHOM_TEST_EXAMPLES where that is set."""
    return int(os.environ.get("FATHOM_TEST_EXAMPLES", default))
