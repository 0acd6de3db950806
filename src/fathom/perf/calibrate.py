"""Fits the cost model to steps that were timed on the machine at hand. Who times them is outside:
`engine/measure.py`, through the executor that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import median

from fathom.perf.calibration import Calibration, Law
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.minimize import Point, minimize_positive
from fathom.perf.parts import Formats
from fathom.perf.rates import measured_rates
from fathom.perf.shape import StepShape, decode_shape, prefill_shape
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_CONTEXTS = (64, 512, 2048, 8192)
_PROMPTS = (16, 64, 128, 256, 512, 1024, 2048)
# Every third sample is kept from the fit, and says how far off it is.
_HELD_OUT = 3
# Bytes a second of weights and of latents; operations of products, of experts, of attention over
# latents and over prompts; seconds of a layer's and of an expert's fixed work.
_START = (2e10, 2e10, 3e11, 3e11, 1e11, 1e11, 3e-5, 1e-6)


@dataclass(frozen=True, slots=True)
class StepCase:
    """A step to time: each sequence's positions, and its context at the step's end. One position
    continues an answer."""

    sequences: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> StepShape:
        """What its time depends on."""
        contexts = [context for count, context in self.sequences if count == 1]
        if contexts:
            return decode_shape(len(contexts), sum(contexts))
        return prefill_shape(self.sequences, num_sampled=len(self.sequences))


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A case, and the seconds of the device."""

    case: StepCase
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration, and (predicted, measured) seconds of steps that it was not fitted to."""

    calibration: Calibration
    held_out: tuple[tuple[float, float], ...]

    @property
    def median_error(self) -> float:
        """Relative, of the steps held out."""
        return median(abs(predicted / seconds - 1) for predicted, seconds in self.held_out)


def cases(
    max_sequences: int, max_batch_tokens: int, max_model_len: int, kv_tokens: int
) -> tuple[StepCase, ...]:
    """Steps that a deployment can run: batches that decode, and pieces of prompts."""
    made = [
        StepCase(((1, context),) * batch)
        for context in _CONTEXTS
        for batch in _BATCHES
        # The steps that repeat a case go on where it ended.
        if context < max_model_len and batch <= max_sequences
        if batch * context * 2 <= kv_tokens
    ]
    most = min(max_batch_tokens, max_model_len, kv_tokens // 2)
    made += [StepCase(((count, count),)) for count in _PROMPTS if count <= most]
    return tuple(made)


def fit(spec: ModelSpec, formats: Formats, steps: Sequence[TimedStep], start: Calibration) -> Fit:
    """`start` names the machine and where its times come from; the rest is fitted."""

    def made(point: Point) -> CostModel:
        calibration = _calibration(start, formats, point)
        return cost_model(spec, Layout(), measured_rates(calibration), formats, calibration)

    used = [step for index, step in enumerate(steps) if index % _HELD_OUT != _HELD_OUT - 1]

    def score(point: Point) -> float:
        model = made(point)
        return sum(abs(log(model.device_s(step.case.shape) / step.seconds)) for step in used)

    best = minimize_positive(score, minimize_positive(score, _START, rounds=500), rounds=300)
    model = made(best)
    held = [step for step in steps if step not in used]
    pairs = tuple((model.device_s(step.case.shape), step.seconds) for step in held)
    ratios = sorted(seconds / predicted for predicted, seconds in pairs)
    tenth = len(ratios) // 10
    between = (min(1.0, ratios[tenth]), max(1.0, ratios[-1 - tenth]))
    spread = {"tpot": between, "ttft": between, "throughput": (1 / between[1], 1 / between[0])}
    return Fit(replace(model.calibration, spread=spread), pairs)


def _calibration(start: Calibration, formats: Formats, point: Point) -> Calibration:
    """Shares of the best rate found of each kind, which stand for the machine's own."""
    weights_bytes, cache_bytes, products, experts, decode, prefill, layer_s, unit_s = point
    bytes_s, most = max(weights_bytes, cache_bytes), max(products, experts, decode, prefill)
    weights, cache = weights_bytes / bytes_s, cache_bytes / bytes_s
    product = Law(bandwidth=weights, compute=products / most)
    laws = {
        "gemm/bfloat16": product,
        f"gemm/{formats.weights.name}": product,
        f"experts/{formats.weights.name}": Law(
            unit_s=unit_s, bandwidth=weights, compute=experts / most
        ),
        "decode/bfloat16": Law(bandwidth=cache, compute=decode / most),
        "prefill/bfloat16": Law(bandwidth=cache, compute=prefill / most),
        "rows": Law(bandwidth=cache),
        "all-reduce": Law(bandwidth=cache),
        "exchange": Law(bandwidth=cache),
        "send": Law(bandwidth=cache),
    }
    peaks = dict.fromkeys(("bfloat16", "fp8_block", "int8", "int4", "vector"), most)
    return replace(start, laws=laws, peaks=peaks, bytes_s=bytes_s, layer_s=layer_s)
