"""The fit to timed steps against a machine whose constants are known, and the cases that it wants
against what a deployment can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.perf.calibrate import StepCase, TimedStep, cases, fit
from fathom.perf.calibration import Calibration, Law, keep, kept
from fathom.perf.cost import cost_model
from fathom.perf.parts import Formats
from fathom.perf.rates import measured_rates
from fathom.perf.shape import decode_shape, prefill_shape
from fathom.spec.formats import BFLOAT16
from fathom.spec.known import find_model
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout

LITE = find_model("DeepSeek-V2-Lite").spec
assert isinstance(LITE, ModelSpec)
FORMATS = Formats(weights=BFLOAT16)
START = Calibration(
    name="it", machine="it", source="test", date="2026-01-01", laws={}, is_here=True
)


def truth() -> Calibration:
    """30 GB/s of weights, 20 of latents; half a Tflop/s of products, less of all else."""
    law = Law(bandwidth=1.0, compute=1.0)
    return Calibration(
        name="truth",
        machine="it",
        source="test",
        date="2026-01-01",
        laws={
            "gemm/bfloat16": law,
            "experts/bfloat16": Law(unit_s=2e-6, compute=0.6),
            "decode/bfloat16": Law(bandwidth=0.66, compute=0.3),
            "prefill/bfloat16": Law(bandwidth=0.66, compute=0.2),
            "rows": Law(bandwidth=0.66),
        },
        peaks=dict.fromkeys(("bfloat16", "fp8_block", "int8", "int4", "vector"), 5e11),
        bytes_s=3e10,
        layer_s=5e-5,
    )


def test_known_constants_are_found_again() -> None:
    known = truth()
    machine = cost_model(LITE, Layout(), measured_rates(known), FORMATS, known)
    wanted = cases(64, 2048, 8192, 10**6)
    steps = [TimedStep(case, machine.device_s(case.shape)) for case in wanted]
    found = fit(LITE, FORMATS, steps, START)
    assert found.median_error < 0.05
    model = cost_model(
        LITE, Layout(), measured_rates(found.calibration), FORMATS, found.calibration
    )
    assert model.confidence == "measured on this machine"
    for shape in (decode_shape(12, 12 * 1500), prefill_shape([(700, 900)], num_sampled=1)):
        assert model.device_s(shape) == pytest.approx(machine.device_s(shape), rel=0.1)


def test_cases_fit_the_deployment() -> None:
    for case in cases(4, 300, 1000, 5000):
        assert len(case.sequences) <= 4
        assert sum(count for count, _ in case.sequences) <= 300
        assert max(context for _, context in case.sequences) < 1000
        assert sum(context for _, context in case.sequences) <= 5000


def test_a_case_has_the_shape_of_its_step() -> None:
    assert StepCase(((1, 10), (1, 20))).shape == decode_shape(2, 30)
    assert StepCase(((8, 8),)).shape == prefill_shape([(8, 8)], num_sampled=1)


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    assert kept(tmp_path) == ()
    path = keep(truth(), tmp_path)
    assert kept(tmp_path) == (truth(),)
    path.write_text('{"format": "another/1"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"calibration .*truth\.json"):
        kept(tmp_path)
