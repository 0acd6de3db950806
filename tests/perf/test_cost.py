"""The cost model against the parameter table, its own roofline and what must hold of any machine;
against measured points, what bench/cost.py says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration, Law, built_in, parse_calibration
from fathom.perf.cost import CostModel, cost_model
from fathom.perf.parts import Formats, parts
from fathom.perf.shape import StepShape, decode_shape, joined, prefill_shape
from fathom.spec.catalogue import parse_cluster
from fathom.spec.families import Model, parameters
from fathom.spec.formats import BFLOAT16, FP8_BLOCK, FP8_LATENT, INT8_CHANNEL, int4_group
from fathom.spec.hardware import Cluster
from fathom.spec.known import find_model
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout
from fathom.spec.work import distinct_experts, expert_chances

V3 = find_model("DeepSeek-V3").spec
LLAMA = find_model("DeepSeek-R1-Distill-Llama-70B").spec
assert isinstance(V3, ModelSpec)
FP8 = Formats(weights=FP8_BLOCK)
EIGHT = parse_cluster("8xH200")
LAYOUTS = (
    Layout(tp=8),
    Layout(tp=8, ep=8),
    Layout(tp=1, dp=8, ep=8),
    Layout(tp=2, dp=4, ep=2),
    Layout(tp=4, pp=2),
)


def model(
    layout: Layout = LAYOUTS[0], cluster: Cluster = EIGHT, calibration: Calibration | None = None
) -> CostModel:
    return cost_model(V3, layout, cluster, FP8, calibration or built_in())


@st.composite
def shapes(draw: st.DrawFn) -> StepShape:
    sequences = draw(st.integers(0, 300))
    context = draw(st.integers(1, 9000))
    decode = decode_shape(sequences, sequences * context)
    chunks = draw(st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 9000)), max_size=3))
    prompts = [(count, count + before) for count, before in chunks]
    return joined(decode, prefill_shape(prompts, num_sampled=len(prompts)))


@pytest.mark.parametrize("spec", [V3, LLAMA], ids=["V3", "Llama"])
def test_weights_that_a_step_reads_are_those_of_the_parameter_table(spec: Model) -> None:
    """All of them but the embedding's table, of which a step reads rows, norms and biases."""
    table = sum(
        param.format.num_bytes(param.shape)
        for param in parameters(spec)
        if len(param.shape) == 2
        and param.role != "embed"
        and (param.layer is None or param.layer < spec.num_layers)
    )
    made = parts(spec, Layout(), Formats(weights=spec.weight_format))
    # Decode reads the same up-projections that prompts do, in another format.
    read = [part for part in made if not part.name.startswith("absorb")]
    assert sum(p.count * p.fixed_bytes * (len(p.chances) or 1) for p in read) == table


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_ranks_share_what_they_read_and_compute(tp: int) -> None:
    """Times the ranks, at least what one rank alone has, and no more than what is replicated."""
    shape = decode_shape(64, 64 * 3000)
    one, many = (
        cost_model(V3, Layout(tp=n), replace(EIGHT, gpus_per_node=n), FP8, built_in())
        for n in (1, tp)
    )
    alone, shared = (
        sum(line.num_bytes for line in one.explain(shape) if line.bound != "link")
        for one in (one, many)
    )
    # The cache and the latents' projections are on every rank.
    assert alone <= shared * tp <= alone * 1.1 + (tp - 1) * 64 * 3000 * 576 * 2 * 61


def test_chances_of_experts_add_up_to_the_experts_of_a_token() -> None:
    for skew in (0.0, 0.3, 0.7, 1.2, 3.0):
        chances = expert_chances(256, 8, skew)
        assert sum(chances) == pytest.approx(8)
        assert max(chances) <= 1
        assert list(chances) == sorted(chances, reverse=True)
    # Of even choices, DeepSeek-V3's numbers in closed form.
    even = expert_chances(256, 8, 0.0)
    assert distinct_experts(even, 16) == pytest.approx(256 * (1 - (1 - 8 / 256) ** 16))
    # Popular experts are found again and again.
    found = [distinct_experts(expert_chances(256, 8, skew), 16) for skew in (0, 0.5, 1, 2)]
    assert found == sorted(found, reverse=True)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from(LAYOUTS))
def test_a_step_is_never_below_its_roofline_and_its_lines_add_up(
    shape: StepShape, layout: Layout
) -> None:
    predicted = model(layout)
    seconds = predicted.device_s(shape)
    assert seconds >= predicted.roofline_s(shape)
    lines = predicted.explain(shape)
    assert sum(line.seconds for line in lines) == pytest.approx(seconds, rel=1e-9)
    assert all(line.seconds >= line.roofline_s for line in lines)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from(LAYOUTS), st.floats(1.0, 4.0))
def test_a_faster_machine_is_never_slower(shape: StepShape, layout: Layout, factor: float) -> None:
    base = model(layout).device_s(shape)
    gpu = EIGHT.gpu
    for faster in (
        replace(gpu, bandwidth_bytes_s=gpu.bandwidth_bytes_s * factor),
        replace(gpu, bf16_flops=gpu.bf16_flops * factor),
        replace(gpu, fp8_flops=(gpu.fp8_flops or 0) * factor),
        replace(gpu, fp32_flops=(gpu.fp32_flops or 0) * factor),
        replace(gpu, nvlink_bytes_s=gpu.nvlink_bytes_s * factor),
    ):
        assert model(layout, replace(EIGHT, gpu=faster)).device_s(shape) <= base * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(shapes(), shapes(), st.sampled_from((LAYOUTS[0], LAYOUTS[1], LAYOUTS[4])))
def test_more_work_never_takes_less_time(one: StepShape, more: StepShape, layout: Layout) -> None:
    predicted = model(layout)
    assert predicted.device_s(joined(one, more)) >= predicted.device_s(one)
    assert predicted.host_s(joined(one, more)) >= predicted.host_s(one)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 9000), st.integers(0, 4000), st.sampled_from(LAYOUTS))
def test_longer_contexts_and_more_sequences_never_take_less_time(
    sequences: int, context: int, longer: int, layout: Layout
) -> None:
    predicted = model(layout)
    base = predicted.device_s(decode_shape(sequences, sequences * context))
    assert predicted.device_s(decode_shape(sequences, sequences * (context + longer))) >= base
    assert predicted.device_s(decode_shape(sequences + 1, (sequences + 1) * context)) >= base


def test_leaner_formats_are_faster_where_memory_binds() -> None:
    shape = decode_shape(64, 64 * 8000)

    def seconds(formats: Formats) -> float:
        return cost_model(V3, LAYOUTS[0], EIGHT, formats, built_in()).roofline_s(shape)

    assert seconds(Formats(weights=int4_group(128))) < seconds(FP8)
    assert seconds(FP8) < seconds(Formats(weights=BFLOAT16))
    assert seconds(Formats(weights=FP8_BLOCK, kv=FP8_LATENT)) < seconds(FP8)


def test_data_parallel_attention_reads_each_context_once() -> None:
    """At long contexts and many users it is the faster layout, as its purpose is."""
    shape = decode_shape(128, 128 * 32_000)
    assert model(Layout(tp=1, dp=8, ep=8)).device_s(shape) < model().device_s(shape)
    short = decode_shape(1, 500)
    assert model(Layout(tp=1, dp=8, ep=8)).device_s(short) > model().device_s(short)


def test_what_was_measured_is_said() -> None:
    assert model().confidence == "measured on this GPU type"
    low, high = model().interval("tpot")
    assert 0 < low <= 1 <= high
    elsewhere = model(cluster=parse_cluster("8xH20-141"))
    assert elsewhere.confidence == "roofline"
    assert elsewhere.interval("tpot") == built_in().spread["other/tpot"]
    # Matrices in a format that was not measured there.
    eight_bits = cost_model(V3, LAYOUTS[0], EIGHT, Formats(weights=INT8_CHANNEL), built_in())
    assert eight_bits.confidence == "roofline"
    here = replace(built_in(), is_here=True)
    assert model(calibration=here).confidence == "measured on this machine"


def test_a_calibration_survives_its_file() -> None:
    calibration = built_in()
    assert parse_calibration(calibration.to_json(), "it") == calibration
    assert calibration.law("gemm", "int8") == calibration.laws["gemm/bfloat16"]
    assert calibration.law("nothing") == Law()


def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 ranks on 8 GPUs"):
        model(Layout(tp=16))
