"""Seconds of a step, kernel by kernel: what moves and computes over the rates of the devices at the
measured efficiencies, and never below the roofline.

`CostModel.device_s` is called for every simulated step, so the sums are folded at construction;
`explain` says the same in words, one line for each kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import hypot
from typing import Literal, NamedTuple

from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration, Law
from fathom.perf.parts import ALL_TOKENS, Formats, Part, parts
from fathom.perf.rates import Rates, cluster_rates
from fathom.perf.shape import StepShape
from fathom.spec.families import Model
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.spec.work import distinct_experts

Confidence = Literal["measured on this machine", "measured on this GPU type", "roofline"]


@dataclass(frozen=True, slots=True)
class OpCost:
    """One kernel of a step, all its runs together: `num_bytes` of memory or of a link, of one rank.

    `bound`: `memory`, `compute`, `link`, or `latency` where what is fixed takes most of it.
    """

    name: str
    count: int
    num_bytes: float
    operations: float
    seconds: float
    roofline_s: float
    bound: str
    formula: str
    source: str


class _Term(NamedTuple):
    """A part with its rates folded in: seconds of fixed work and for each of its counts."""

    runs: int
    fixed_s: float
    bytes_s: float
    bytes_each_s: float
    grows: int
    operations_each_s: float
    computes: int


class _Exchange(NamedTuple):
    """The same of a collective, which has two ways."""

    runs: int
    fixed_s: float
    each_s: float
    ramp_s: float
    ramp_each_s: float
    grows: int


class CostModel:
    """Predicts the steps of one deployment. Make one with `cost_model`."""

    def __init__(
        self,
        model_parts: tuple[Part, ...],
        num_layers: int,
        layout: Layout,
        rates: Rates,
        calibration: Calibration,
    ) -> None:
        self.layout, self.rates, self.calibration = layout, rates, calibration
        self._parts, self._peaks = model_parts, rates.peaks
        self._num_layers = num_layers
        plain = (part for part in model_parts if not part.chances and not part.ranks)
        self._terms = tuple(map(self._term, plain))
        self._exchanges = tuple(self._exchange(part) for part in model_parts if part.ranks)
        self._experts = tuple(
            (part, self._term(part), self._law_of(part).unit_s)
            for part in model_parts
            if part.chances
        )
        largest = max(model_parts, key=lambda part: part.fixed_bytes * (len(part.chances) or 1))
        self._is_measured = calibration.has_law(largest.law, largest.form.name)
        self._distinct: dict[int, float] = {}
        self._base_s = calibration.step_s + num_layers * calibration.layer_s

    @property
    def confidence(self) -> Confidence:
        """Where the constants come from: of this machine, if its largest matrices were measured in
        their format too."""
        if self.calibration.machine != self.rates.machine or not self._is_measured:
            return "roofline"
        if self.calibration.is_here:
            return "measured on this machine"
        return "measured on this GPU type"

    def interval(self, measure: Literal["tpot", "ttft", "throughput"]) -> tuple[float, float]:
        """Factors on a prediction between which eight of ten measurements lay that were not fitted:
        of the same machine, or of others where this one was not measured."""
        spread = self.calibration.spread
        prefix = "other/" if self.confidence == "roofline" else ""
        return spread.get(prefix + measure, spread.get(measure, (0.5, 2.0)))

    def device_s(self, shape: StepShape) -> float:
        """Seconds that the devices take for a step."""
        counts = self._counts(shape)
        total_s = self._base_s
        for runs, fixed_s, bytes_s, each_s, grows, operations_each_s, computes in self._terms:
            much = counts[grows]
            if much:
                computing_s = operations_each_s * counts[computes]
                total_s += runs * (fixed_s + hypot(bytes_s + each_s * much, computing_s))
        for runs, fixed_s, each_s, ramp_s, ramp_each_s, grows in self._exchanges:
            much = counts[grows]
            if much:
                moving_s, ramped_s = each_s * much, ramp_s + ramp_each_s * much
                total_s += runs * (fixed_s + (moving_s if moving_s < ramped_s else ramped_s))
        tokens = counts[ALL_TOKENS]
        for part, term, unit_s in self._experts if tokens else ():
            distinct = self._distinct_experts(part, tokens)
            moving_s = distinct * term.bytes_s + term.bytes_each_s * tokens
            seconds = term.fixed_s + unit_s * distinct
            total_s += term.runs * (seconds + hypot(moving_s, term.operations_each_s * tokens))
        return total_s

    def host_s(self, shape: StepShape) -> float:
        """Seconds that the host takes to plan, submit and answer a step."""
        calibration = self.calibration
        return calibration.host_step_s + calibration.host_sequence_s * shape.num_sequences

    def roofline_s(self, shape: StepShape) -> float:
        """What no engine can be faster than: bytes at the full rate of memory or link, or
        operations at the peak, whichever takes longer, kernel by kernel."""
        return sum(line.roofline_s for line in self._lines(shape))

    def explain(self, shape: StepShape) -> tuple[OpCost, ...]:
        """A line for each kernel that the step runs; their seconds sum to `device_s`."""
        calibration = self.calibration
        small = OpCost(
            "small kernels and launches",
            self._num_layers,
            0.0,
            0.0,
            self._base_s,
            0.0,
            "latency",
            f"{calibration.step_s:.3g} s + {self._num_layers} x {calibration.layer_s:.3g} s",
            calibration.source,
        )
        return (*self._lines(shape), small)

    def _lines(self, shape: StepShape) -> Iterator[OpCost]:
        counts = self._counts(shape)
        for part in self._parts:
            if counts[part.grows]:
                yield self._line(part, counts)

    def _line(self, part: Part, counts: tuple[int, ...]) -> OpCost:
        law, much, count = self._law_of(part), counts[part.grows], part.count
        units = part.units
        fixed_bytes = part.fixed_bytes
        if part.chances:
            units = self._distinct_experts(part, much)
            fixed_bytes *= units
        num_bytes = fixed_bytes + part.bytes_each * much
        operations = part.operations_each * counts[self._computes(part)]
        bytes_rate, more_s, peak = self._rates_of(part)
        moving_s, computing_s = num_bytes / bytes_rate, operations / peak
        seconds = law.seconds(moving_s, computing_s, units) + more_s
        fixed_s = law.fixed_s + more_s + law.unit_s * units
        bound = "link" if part.ranks else "memory"
        if computing_s / law.compute > moving_s / law.bandwidth:
            bound = "compute"
        if fixed_s > seconds / 2:
            bound = "latency"
        formula = f"{count} x ({fixed_s:.3g} s + |{num_bytes:.4g} B / {bytes_rate:.4g} / "
        formula += f"{law.bandwidth:.2f}, {operations:.4g} op / {peak:.4g} / {law.compute:.2f}|)"
        return OpCost(
            part.name,
            count,
            count * num_bytes,
            count * operations,
            count * seconds,
            count * max(moving_s, computing_s),
            bound,
            formula,
            self._source(part),
        )

    def _source(self, part: Part) -> str:
        form = "" if part.ranks or part.law == "rows" else part.form.name
        if self.calibration.has_law(part.law, form) or self.calibration.has_law(part.law):
            return self.calibration.source
        return f"not measured for {part.form.name}: the nearest law of {self.calibration.name}"

    def _counts(self, shape: StepShape) -> tuple[int, ...]:
        """Of the busiest group of ranks that share sequences, in the order of `perf.parts`."""
        groups = self.layout.dp
        prefill = shape.prefill_tokens
        decode = shape.num_tokens - prefill
        kv, pairs = shape.prefill_kv_tokens, shape.prefill_pairs
        decode_kv, decode_pairs = shape.kv_tokens - kv, shape.query_key_pairs - pairs
        sampled = shape.num_sampled
        if groups > 1:
            # A sequence stays in its group, so few sequences keep few groups busy.
            busy = min(groups, shape.num_sequences - shape.decode_sequences) or 1
            prefill, kv, pairs = -(-prefill // busy), -(-kv // busy), -(-pairs // busy)
            busy = min(groups, shape.decode_sequences) or 1
            decode = -(-decode // busy)
            decode_kv, decode_pairs = -(-decode_kv // busy), -(-decode_pairs // busy)
            sampled = -(-sampled // groups)
        tokens = decode + prefill
        everyone = shape.num_tokens
        return (tokens, everyone, sampled, decode, decode_kv, decode_pairs, prefill, kv, pairs)

    def _distinct_experts(self, part: Part, tokens: int) -> float:
        found = self._distinct.get(tokens)
        if found is None:
            found = distinct_experts(part.chances, tokens) / part.groups
            self._distinct[tokens] = found
        return found

    def _law_of(self, part: Part) -> Law:
        if part.ranks or part.law == "rows":
            return self.calibration.law(part.law)
        law, form = self.calibration.law(part.law, part.form.name), part.form.name
        if form not in self._peaks:
            form = "bfloat16"
        return replace(law, compute=self.calibration.computing(law, form, self._peaks))

    def _rates_of(self, part: Part) -> tuple[float, float, float]:
        """Bytes per second, seconds that a link adds, and the peak."""
        if part.ranks:
            bytes_s, more_s = self.rates.link(part.ranks)
            return bytes_s, more_s, self.rates.bfloat16
        return self.rates.bytes_s, 0.0, self.rates.operations_s(part.form)

    @staticmethod
    def _computes(part: Part) -> int:
        return part.grows if part.computes < 0 else part.computes

    def _term(self, part: Part) -> _Term:
        law = self._law_of(part)
        bytes_rate, more_s, peak = self._rates_of(part)
        bytes_s = bytes_rate * law.bandwidth
        return _Term(
            runs=part.count,
            fixed_s=law.fixed_s + more_s + (0.0 if part.chances else law.unit_s * part.units),
            bytes_s=part.fixed_bytes / bytes_s,
            bytes_each_s=part.bytes_each / bytes_s,
            grows=part.grows,
            operations_each_s=part.operations_each / (peak * law.compute),
            computes=self._computes(part),
        )

    def _exchange(self, part: Part) -> _Exchange:
        law = self._law_of(part)
        bytes_rate, more_s, _ = self._rates_of(part)
        each_s = part.bytes_each / bytes_rate
        ramp_each_s = each_s / (law.ramp_bandwidth or law.bandwidth)
        return _Exchange(
            part.count,
            law.fixed_s + more_s,
            each_s / law.bandwidth,
            law.ramp_s,
            ramp_each_s,
            part.grows,
        )


def cost_model(
    model: Model,
    layout: Layout,
    cluster: Cluster | Rates,
    formats: Formats,
    calibration: Calibration,
) -> CostModel:
    """The model of a deployment. Devices that are no GPUs of the catalogue come as `Rates`.

    Raises: ConfigError for a layout of more ranks than the cluster has GPUs.
    """
    if isinstance(cluster, Cluster) and layout.world_size > cluster.num_gpus:
        found = f"{layout.world_size} ranks on {cluster.num_gpus} GPUs"
        raise ConfigError("layout", found=found, wanted="at most a rank a GPU")
    rates = cluster if isinstance(cluster, Rates) else cluster_rates(cluster)
    made = parts(model, layout, formats, skew=calibration.skew, node=rates.node)
    return CostModel(made, model.num_layers, layout, rates, calibration)
