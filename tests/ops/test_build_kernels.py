"""Installing where no C++ compiler is: the package is built without kernels and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.ops.backends.cpu import library
from fathom.ops.select import needs_of, select_backends
from fathom.spec.deepseek import parse_config
from tests.weights.tiny_checkpoints import TINY_V3

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("is_required", [False, True])
def test_without_a_compiler(is_required: bool, tmp_path: Path) -> None:
    """CI asks for kernels by FATHOM_REQUIRE_KERNELS: there it must fail."""
    missing = str(tmp_path / "no-compiler")
    environment = {**os.environ, "CC": missing, "CXX": missing}
    environment.pop("FATHOM_REQUIRE_KERNELS", None)
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            f"--build-lib={tmp_path}",
            f"--build-temp={tmp_path}",
        ],
        cwd=ROOT,
        env=environment | ({"FATHOM_REQUIRE_KERNELS": "1"} if is_required else {}),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode == 0) is not is_required, done.stderr
    assert missing in done.stdout + done.stderr
    assert ("the reference will serve" in done.stdout + done.stderr) is not is_required
    assert not list(tmp_path.rglob("*.so"))


def test_the_reference_serves_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "libfathom.so")
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    needs = needs_of(parse_config(TINY_V3), device="cpu", dtype="bfloat16", is_quantized=False)
    assert {choice.backend for choice in select_backends(needs).choices} == {"reference"}
    with pytest.raises(ConfigError, match=r"(?s)not built.*install g\+\+"):
        library.load()
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        select_backends(needs, forced="cpu")
