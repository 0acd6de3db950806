"""docs/reference/library.md is one program, prints what it says, and runs where torch is not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/library.md"


def test_the_page_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    program = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    printed = "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL))
    command = [sys.executable, "-c", f"import sys\nsys.modules['torch'] = None\n{program}"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == printed
