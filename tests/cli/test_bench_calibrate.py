"""`fathom bench calibrate` on the embedded model: what it keeps is read again and said to be of
this machine. Its times are whatever the machine gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.commands.bench import main
from fathom.errors import ConfigError
from fathom.perf.calibration import kept
from fathom.perf.cost import cost_model
from fathom.perf.parts import Formats
from fathom.perf.rates import measured_rates
from fathom.perf.shape import decode_shape
from fathom.spec.formats import FLOAT32, FP8_BLOCK
from fathom.spec.known import find_model
from fathom.spec.parallel import Layout

SMALL = ("--device", "cpu", "--max-num-seqs", "2", "--max-model-len", "130", "--repeats", "1")


def test_a_machine_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["calibrate", *SMALL]) == 0
    told = capsys.readouterr()
    [found] = kept(tmp_path / "fathom")
    assert found.is_here
    assert found.machine in told.out
    # Two batches of one context, and prompts of 16, 64 and 128.
    assert len(told.err.splitlines()) == 5
    spec = find_model("DeepSeek-V2-Lite").spec
    # The reference backend, where there are no kernels, multiplies FP8 out.
    weights = {"fp8_block": FP8_BLOCK, "float32": FLOAT32}[found.weights]
    formats = Formats(weights=weights)
    model = cost_model(spec, Layout(), measured_rates(found), formats, found)
    assert model.confidence == "measured on this machine"
    assert model.device_s(decode_shape(1, 100)) > 0


def test_settings_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="--repeats"):
        main(["calibrate", "--repeats", "0"])
    with pytest.raises(ConfigError, match="one rank"):
        main(["calibrate", "--tensor-parallel-size", "2"])
