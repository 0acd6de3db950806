"""Laws of kernels with their measured constants, and the JSON that holds them.

`h200.json` beside this file is made by `bench/cost.py`; `fathom bench calibrate` writes one of the
same form for the machine at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from math import hypot
from pathlib import Path
from typing import Any

from fathom.errors import ConfigError

FORMAT = "fathom-calibration/1"
_BUILT_IN, _KEPT_IN = "h200.json", "calibration"
# Of a peak that products of any size reach.
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class Law:
    """Seconds of a kernel: `fixed_s`, `unit_s` for each of its units that follow one another (the
    inputs of a product, the experts touched), and the time of its bytes at the share `bandwidth` of
    the memory's (or the link's) rate and of its operations at the share `compute` of the peak,
    joined as the sides of a right angle: bound by the larger, and by both where they are alike.
    So it is efficient where it is large, and never faster than its roofline.

    A collective may have a second way for large messages, `ramp_s` more at first and at the share
    `ramp_bandwidth` of the link; it takes the quicker."""

    fixed_s: float = 0.0
    unit_s: float = 0.0
    bandwidth: float = 1.0
    compute: float = 1.0
    ramp_s: float = 0.0
    ramp_bandwidth: float = 0.0

    def seconds(self, bytes_s: float, operations_s: float, units: float = 0.0) -> float:
        """Of what would take `bytes_s` and `operations_s` at the full rates."""
        moving, computing = bytes_s / self.bandwidth, operations_s / self.compute
        if self.ramp_bandwidth:
            moving = min(moving, self.ramp_s + bytes_s / self.ramp_bandwidth)
        return self.fixed_s + self.unit_s * units + hypot(moving, computing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured. `machine`: the GPU id, or the name of the CPU; `is_here`: on the machine
    at hand, whose memory reads `bytes_s`, with weights in the format `weights`; `threads` of its
    CPUs, beside `memory_bytes`, where these were the device. `laws` by kernel, such as
    `gemm/fp8_block`. `peaks`: of the machine, by format and `vector`, as `Rates` has them.

    `layer_s`: small kernels of a layer that have no law; `step_s`: a step's begin and end;
    `host_step_s` and `host_sequence_s`: the host's work, hidden behind the device where it is less;
    `first_token_s`: what a request waits beside queue and prompt; `skew`: of experts' popularity
    (`expert_chances`).
    `spread`: for `tpot`, `ttft` and `throughput`, what measured over predicted was in the tenth and
    ninetieth hundredth of points never fitted; with the prefix `other/`, of other machines.
    """

    name: str
    machine: str
    source: str
    date: str
    laws: Mapping[str, Law]
    peaks: Mapping[str, float] = field(default_factory=dict)
    layer_s: float = 0.0
    step_s: float = 0.0
    host_step_s: float = 0.0
    host_sequence_s: float = 0.0
    first_token_s: float = 0.0
    skew: float = 0.0
    is_here: bool = False
    bytes_s: float = 0.0
    weights: str = ""
    threads: int = 0
    memory_bytes: int = 0
    licence: str = ""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def law(self, kind: str, form: str = "") -> Law:
        """The law of a kernel in a format; where that was not measured, in bfloat16, or in any."""
        prefix = f"{kind}/"
        for name in (f"{kind}/{form}", f"{kind}/bfloat16", kind):
            if name in self.laws:
                return self.laws[name]
        for name, law in self.laws.items():
            if name.startswith(prefix):
                return law
        return Law()

    def has_law(self, kind: str, form: str = "") -> bool:
        """Whether that very kernel was measured."""
        return (f"{kind}/{form}" if form else kind) in self.laws

    def computing(self, law: Law, form: str, peaks: Mapping[str, float]) -> float:
        """Share of the peak that a kernel reaches on a machine with other `peaks`.

        What it misses of nine tenths is work beside the matrix units (scales, sums, exponentials),
        which takes its time at the rate of float32: a GPU with small matrix units, as the H20's,
        misses less of its peak than the H200 does.
        """
        peak, here = peaks[form], self.peaks.get(form, 0.0)
        if law.compute >= _MOST or not here:
            return law.compute
        beside_s = (1 / law.compute - 1 / _MOST) / here * self.peaks["vector"] / peaks["vector"]
        return 1 / (1 / _MOST + beside_s * peak)

    def to_json(self) -> str:
        """The text that `parse_calibration` reads."""
        told = asdict(self)
        return json.dumps({"format": FORMAT, **told}, indent=1, sort_keys=True) + "\n"


def parse_calibration(text: str, where: str) -> Calibration:
    """From JSON. Raises: ConfigError that names `where`."""
    try:
        told: dict[str, Any] = json.loads(text)
        if told.pop("format") != FORMAT:
            raise ValueError("another format")
        told["laws"] = {name: Law(**law) for name, law in told["laws"].items()}
        told["spread"] = {name: (low, high) for name, (low, high) in told["spread"].items()}
        return Calibration(**told)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"calibration {where}", found=str(error), wanted=FORMAT) from error


def built_in() -> Calibration:
    """The one that comes with fathom: kernels and serving of SGLang on H200."""
    text = resources.files(__name__).joinpath(_BUILT_IN).read_text(encoding="utf-8")
    return parse_calibration(text, _BUILT_IN)


def joined(measured: Sequence[Calibration]) -> Calibration:
    """Calibrations of one machine as one: the newest, with what others say of other weights, as
    shares of the best rates of all."""
    bytes_s = max(one.bytes_s for one in measured)
    peaks = {name: max(one.peaks[name] for one in measured) for name in measured[0].peaks}
    laws: dict[str, Law] = {}
    for one in sorted(measured, key=lambda one: one.date):
        own = {f"gemm/{one.weights}", f"experts/{one.weights}"}
        shares = one.bytes_s / bytes_s, one.peaks["bfloat16"] / peaks["bfloat16"]
        for name, law in one.laws.items():
            # What was fitted for other weights stands in for them no longer.
            if name in own or name not in laws or not name.startswith(("gemm/", "experts/")):
                laws[name] = replace(
                    law, bandwidth=law.bandwidth * shares[0], compute=law.compute * shares[1]
                )
    newest = max(measured, key=lambda one: one.date)
    return replace(newest, laws=laws, peaks=peaks, bytes_s=bytes_s)


def keep(calibration: Calibration, directory: Path) -> Path:
    """Write it where `kept` finds it, in the place of an older one of the same name; the file."""
    directory = directory / _KEPT_IN
    directory.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", calibration.name.lower()).strip("-")
    path = directory / f"{slug}.json"
    path.write_text(calibration.to_json(), encoding="utf-8")
    return path


def kept(directory: Path) -> tuple[Calibration, ...]:
    """All that `keep` wrote there. Raises: ConfigError for a file that is no calibration."""
    files = sorted((directory / _KEPT_IN).glob("*.json"))
    return tuple(parse_calibration(one.read_text(encoding="utf-8"), str(one)) for one in files)
