"""Published throughputs that nothing was fitted to, and what the model says of the same load.

Most come from loads that a single number hides (all requests at once, a batch not stated), so only
tokens per second are compared, and none counts in the medians. What is missing is assumed here, by
name.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

from cost_data import DATA
from cost_serving import kv_room

from fathom.perf.calibration import Calibration
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.parts import Formats
from fathom.perf.shape import decode_shape, prefill_shape
from fathom.perf.steady import Load, steady
from fathom.spec.catalogue import find_gpu
from fathom.spec.formats import FP8_BLOCK, Format, int4_group
from fathom.spec.hardware import Cluster
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout

H200 = "h200-sxm-141"
TP8, DP8 = Layout(tp=8), Layout(tp=1, dp=8, ep=8)
INFINITE = "all requests at once: its TTFT and TPOT are of the queue, not of the deployment"


@dataclass(frozen=True, slots=True)
class Case:
    """`kind`: `total` and `out` tokens of a closed loop, `prefill` and `decode` of steps of
    `concurrency` sequences; per second and 8 GPUs."""

    id: str
    gpu: str
    layout: Layout
    kind: str
    concurrency: int
    isl: int
    osl: int
    note: str
    weights: Format = FP8_BLOCK


CASES = (
    Case("gpustack-h200-vllm-sharegpt", H200, TP8, "total", 1000, 219, 201, INFINITE),
    Case("gpustack-h200-sglang-dp-sharegpt", H200, DP8, "total", 1000, 219, 201, INFINITE),
    Case("gpustack-h200-vllm-32k", H200, TP8, "total", 100, 32000, 100, INFINITE),
    Case("gpustack-h200-sglang-dp-32k", H200, DP8, "total", 100, 32000, 100, INFINITE),
    Case("gpustack-h200-sglang-dp-4k", H200, DP8, "total", 500, 4000, 200, INFINITE),
    Case("gpustack-h200-sglang-dp-2k", H200, DP8, "total", 500, 2000, 100, INFINITE),
    Case("vllm-pr28992-h200-b16", H200, TP8, "out", 16, 2, 100, ""),
    Case("sglang-pr6885-8h20", "h20-sxm-96", TP8, "out", 8, 515, 268, "before its own tuning"),
    Case("ant-h20-96", "h20-sxm-96", TP8, "prefill", 2, 4096, 0, "8,192 tokens a step assumed"),
    Case(
        "lmsys-96h100-prefill",
        "h100-sxm-80",
        Layout(tp=1, dp=32, ep=32),
        "prefill",
        256,
        2000,
        0,
        "16,000 tokens a GPU and step assumed; its exchanges overlap with computing",
    ),
    Case(
        "deepseek-online-decode",
        "h800-sxm-80",
        Layout(tp=1, dp=144, ep=144),
        "decode",
        12_680,
        4989,
        0,
        "batch from Little's law, context from DeepSeek's own account; drafts and overlap",
    ),
    Case(
        "dzhsurf-8h100-awq-c1",
        "h100-sxm-80",
        TP8,
        "out",
        1,
        1024,
        256,
        "vLLM 0.7.3, whose kernels were a year older than those of the fit",
        int4_group(128),
    ),
    Case(
        "dzhsurf-8h100-awq-c100",
        "h100-sxm-80",
        TP8,
        "out",
        100,
        1024,
        256,
        "vLLM 0.7.3, whose kernels were a year older than those of the fit",
        int4_group(128),
    ),
)
# Rows of the table that no load can be made of.
LEFT_OUT = {
    "nvfp4": "a format that fathom does not have",
    "CPU expert offload": "experts in the host's memory: not modelled",
    "V3.2": "sparse attention: another architecture",
    "V4.1": "another architecture",
    "MTP3": "drafts, and how many were accepted is not stated",
    "trtllm-sharegpt": INFINITE,
    "dp-128": "four tokens of answer: all queue",
    "gb": "systems of 72 GPUs and more, whose layouts are not stated",
}


def compare(spec: ModelSpec, calibration: Calibration) -> list[dict[str, object]]:
    """A row for each case: predicted and measured tokens per second."""
    with (DATA / "published.csv").open(encoding="utf-8") as lines:
        rows = {row["id"]: row for row in csv.DictReader(lines)}
    told = []
    for case in CASES:
        row = rows[case.id]
        nodes = -(-case.layout.world_size // 8)
        gpu = find_gpu(case.gpu)
        cluster = Cluster(gpu=gpu, gpus_per_node=8, nodes=nodes, network_bytes_s=5e10)
        formats = Formats(weights=case.weights)
        model = cost_model(spec, case.layout, cluster, formats, calibration)
        column = {"total": "total_tok_s", "prefill": "in_tok_s"}.get(case.kind, "out_tok_s")
        predicted, measured = _predict(case, model) / nodes, float(row[column])
        told.append(
            {
                "id": case.id,
                "what": column,
                "predicted": round(predicted, 1),
                "measured": measured,
                "error": round(predicted / measured - 1, 3),
                "note": case.note,
                "source": row["source_url"],
            }
        )
    return told


def _predict(case: Case, model: CostModel) -> float:
    if case.kind == "prefill":
        shape = prefill_shape([(case.isl, case.isl)] * case.concurrency)
        return shape.num_tokens / model.device_s(shape)
    if case.kind == "decode":
        shape = decode_shape(case.concurrency, case.concurrency * case.isl)
        return case.concurrency / model.device_s(shape)
    weights = 673e9 if case.weights == FP8_BLOCK else 360e9
    load = Load(
        concurrency=case.concurrency,
        input_len=case.isl,
        output_len=case.osl,
        kv_tokens=kv_room(find_gpu(case.gpu), case.layout, weights),
        prompts_apart=True,
    )
    found = steady(model, load)
    return found.total_per_s if case.kind == "total" else found.output_per_s
