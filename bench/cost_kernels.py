"""Laws of kernels, fitted to bench/data/kernels_h200.csv; a third of the sizes is held out."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from statistics import median

from fathom.perf.calibration import Law
from fathom.perf.minimize import minimize_positive
from fathom.spec.formats import BFLOAT16, FP8_BLOCK, Format, int4_group

DATA = Path(__file__).parent / "data"
FORMATS: dict[str, Format] = {
    "bfloat16": BFLOAT16,
    "fp8_block": FP8_BLOCK,
    "int4_wo": int4_group(128),
}
# The H200's rates, as the catalogue has them.
BYTES_S, BF16, FP8, NVLINK = 4.8e12, 989e12, 1979e12, 450e9
HIDDEN, TOP, EXPERTS, LATENT, RANK = 7168, 8, 256, 576, 512


@dataclass(frozen=True, slots=True)
class Sample:
    """One kernel: seconds of its bytes and operations at the full rates, units, and as measured."""

    bytes_s: float
    operations_s: float
    units: float
    measured_s: float
    is_held_out: bool


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law, and the median relative error on sizes that were not fitted."""

    law: Law
    num_samples: int
    held_out_error: float


def fit_kernels() -> dict[str, Fitted]:
    """By kernel and format."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    with (DATA / "kernels_h200.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            kind, sample = READERS[row["op"]](row)
            samples[kind].append(sample)
    return {kind: _fit(kind, found) for kind, found in sorted(samples.items())}


def _fit(kind: str, samples: list[Sample]) -> Fitted:
    used = [sample for sample in samples if not sample.is_held_out]
    # Efficiencies stay below 1, so that nothing beats its roofline.
    if kind == "all-reduce":
        start = (5e-6, 0.3, 2e-5, 0.5)

        def law(point: tuple[float, ...]) -> Law:
            fixed_s, bandwidth, ramp_s, ramp_bandwidth = point
            return Law(
                fixed_s,
                bandwidth=min(1.0, bandwidth),
                ramp_s=ramp_s,
                ramp_bandwidth=min(1.0, ramp_bandwidth),
            )
    else:
        start = (1e-5, 1e-9, 0.7, 0.5)
        with_units = any(sample.units for sample in used)

        def law(point: tuple[float, ...]) -> Law:
            fixed_s, unit_s, bandwidth, compute = point
            unit_s = unit_s if with_units else 0.0
            return Law(fixed_s, unit_s, min(1.0, bandwidth), min(1.0, compute))

    def score(point: tuple[float, ...]) -> float:
        made = law(point)
        over = sum(max(0.0, share - 1) for share in point)
        return sum(abs(log(_predict(made, one) / one.measured_s)) for one in used) + over

    # A second start from where the first ended gets out of a simplex that became flat.
    best = minimize_positive(score, minimize_positive(score, start, rounds=400), rounds=400)
    made = law(best)
    held = [abs(_predict(made, one) / one.measured_s - 1) for one in samples if one.is_held_out]
    return Fitted(_rounded(made), len(used), median(held))


def _rounded(law: Law) -> Law:
    return Law(**{name: float(f"{value:.3g}") for name, value in asdict(law).items()})


def _predict(law: Law, sample: Sample) -> float:
    return law.seconds(sample.bytes_s, sample.operations_s, sample.units)


def _is_held_out(size: int) -> bool:
    """Every third of the sizes, which double: decided by the size alone."""
    return (size.bit_length() - 1) % 3 == 1


def _numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def _gemm(row: dict[str, str]) -> tuple[str, Sample]:
    width, inputs = _numbers(row["shape"])
    rows, form = int(row["m"]), FORMATS[row["format"]]
    num_bytes = form.num_bytes((width, inputs)) + 2 * rows * (width + inputs)
    peak = FP8 if form == FP8_BLOCK else BF16
    operations_s = 2 * rows * width * inputs / peak
    return f"gemm/{form.name}", _sample(row, num_bytes / BYTES_S, operations_s, inputs, rows)


def _experts(row: dict[str, str]) -> tuple[str, Sample]:
    inner, form, rows = 2048 // _numbers(row["shape"])[4], FORMATS[row["format"]], int(row["m"])
    distinct = min(EXPERTS, TOP * rows)
    weights = form.num_bytes((2 * inner, HIDDEN)) + form.num_bytes((HIDDEN, inner))
    num_bytes = distinct * weights + 2 * rows * TOP * (2 * HIDDEN + 3 * inner)
    peak = FP8 if form == FP8_BLOCK else BF16
    operations_s = 6 * rows * TOP * HIDDEN * inner / peak
    return f"experts/{form.name}", _sample(row, num_bytes / BYTES_S, operations_s, distinct, rows)


def _decode(row: dict[str, str]) -> tuple[str, Sample]:
    heads, rows, context = _numbers(row["shape"])[0], int(row["m"]), int(row["context"])
    num_bytes = rows * context * LATENT * 2
    operations = 2 * heads * rows * context * (LATENT + RANK)
    sample = _sample(row, num_bytes / BYTES_S, operations / BF16, 0, context * rows)
    return "decode/bfloat16", sample


def _allreduce(row: dict[str, str]) -> tuple[str, Sample]:
    ranks, size = _numbers(row["shape"])[0], int(row["m"])
    moved = 2 * (ranks - 1) / ranks * size
    return "all-reduce", _sample(row, moved / NVLINK, 0.0, 0, size)


def _sample(
    row: dict[str, str], bytes_s: float, operations_s: float, units: float, size: int
) -> Sample:
    measured_s = float(row["latency_us"]) * 1e-6
    return Sample(bytes_s, operations_s, units, measured_s, _is_held_out(size))


READERS: dict[str, Callable[[dict[str, str]], tuple[str, Sample]]] = {
    "gemm": _gemm,
    "moe": _experts,
    "mla_decode": _decode,
    "allreduce": _allreduce,
}
