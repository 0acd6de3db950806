"""The constants that only served points tell: small kernels of a layer, the skew of experts, and
what a first token waits beside queue and prompt; and the predictions of every point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log
from statistics import median

from cost_data import GPUS, Point

from fathom.perf.calibration import Calibration
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.minimize import minimize_positive
from fathom.perf.parts import Formats
from fathom.perf.shape import decode_shape
from fathom.perf.steady import Load, Steady, steady
from fathom.spec.catalogue import find_gpu
from fathom.spec.formats import FP8_BLOCK
from fathom.spec.hardware import Cluster, Gpu
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout

# What engines leave to pools of KV: their share of memory less weights and this.
MEMORY_SHARE, OTHER_BYTES = 0.88, 4e9


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the model says of a point; `errors`: relative, of what was measured."""

    point: Point
    steady: Steady
    is_limited: bool

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        """(predicted, measured) by name: seconds as milliseconds, tokens per second."""
        point, found = self.point, self.steady
        told = {"tpot": (found.tpot_s * 1000, point.tpot_ms)}
        if point.ttft_ms is not None:
            told["ttft"] = (found.ttft_s * 1000, point.ttft_ms)
        if point.total_per_s is not None:
            told["throughput"] = (found.total_per_s, point.total_per_s)
        return told


def model_of(spec: ModelSpec, point: Point, calibration: Calibration) -> CostModel:
    """Of the deployment that a point was measured on."""
    world, gpu = point.layout.world_size, find_gpu(GPUS[point.system])
    nodes = -(-world // 8)
    cluster = Cluster(gpu=gpu, gpus_per_node=min(8, world), nodes=nodes, network_bytes_s=5e10)
    return cost_model(spec, point.layout, cluster, Formats(weights=FP8_BLOCK), calibration)


def kv_room(gpu: Gpu, layout: Layout, num_bytes: float) -> float:
    """Latents that fit all pools, of a model of `num_bytes` in all."""
    # Attention's part is held by each group of data parallelism.
    weights = num_bytes / layout.world_size + 11e9 * (1 - 1 / layout.dp) / layout.tp
    free = gpu.memory_bytes * MEMORY_SHARE - weights - OTHER_BYTES
    return max(0.0, free / 70_272 * layout.dp)


def predict(spec: ModelSpec, point: Point, calibration: Calibration) -> Predicted:
    """The long run of the point's load."""
    model = model_of(spec, point, calibration)
    users = max(1, round(point.concurrency / point.workers))
    room = kv_room(find_gpu(GPUS[point.system]), point.layout, 673e9)
    if room < point.isl + point.osl:
        # It ran, so the engine left more to KV than is assumed here.
        room = inf
    load = Load(
        concurrency=users,
        input_len=point.isl * point.share,
        output_len=point.osl * point.share,
        kv_tokens=room,
        requests_each=point.requests_each,
        prompts_apart=point.engine == "sglang",
    )
    found = steady(model, load)
    if point.is_decode_only:
        # Prompts come computed: an answer is nothing but decode steps.
        batch = round(found.running)
        shape = decode_shape(batch, round(batch * (load.input_len + load.output_len / 2)))
        found = replace(found, tpot_s=model.device_s(shape))
    return Predicted(point, found, found.running < users)


def fit_serving(spec: ModelSpec, points: list[Point], calibration: Calibration) -> Calibration:
    """The same with `layer_s`, `skew` and `first_token_s` from fitted points of one engine."""

    def made(values: tuple[float, ...]) -> Calibration:
        layer_s, skew = values
        return replace(calibration, layer_s=round(layer_s, 9), skew=round(skew, 3))

    def score(values: tuple[float, ...]) -> float:
        if values[1] > 2:
            return 1e3
        found = [predict(spec, point, made(values)) for point in points]
        return sum(abs(log(p / m)) for one in found for p, m in [one.measures["tpot"]])

    best = made(minimize_positive(score, (5e-5, 0.5), rounds=40))
    waits = [predict(spec, point, best) for point in points]
    more_ms = median(m - p for one in waits for p, m in [one.measures["ttft"]])
    return replace(best, first_token_s=round(max(0.0, more_ms / 1000), 4))
