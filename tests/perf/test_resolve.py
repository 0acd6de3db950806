"""Plans against invariants (bytes within the budget, more memory never fewer pages, a longer
context never fewer bytes), and errors against what they promise: each fix is tried and works."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.config import EngineConfig
from fathom.errors import CapacityError, ConfigError
from fathom.perf.memory import kv_bytes_per_token, total_bytes
from fathom.perf.resolve import resolve
from fathom.spec.deepseek import parse_config
from fathom.spec.formats import BFLOAT16, FLOAT32
from fathom.spec.hardware import Device, Machine
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout
from fathom.spec.plan import DeploymentPlan

GIB = 2**30
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
V3 = parse_config(
    {
        "architectures": ["DeepseekV3ForCausalLM"],
        "max_position_embeddings": 163840,
        "quantization_config": FP8,
    }
)
SMALL = parse_config(
    {
        "architectures": ["DeepseekV3ForCausalLM"],
        "max_position_embeddings": 8192,
        "quantization_config": FP8,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "intermediate_size": 768,
        "moe_intermediate_size": 128,
        "vocab_size": 2048,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "q_lora_rank": 128,
    }
)


def gpus(gib: float, count: int = 8, free: float = 0.99) -> Machine:
    total = int(gib * GIB)
    return Machine((Device("cuda", "GPU", total, int(total * free)),) * count, 64)


def host(mib: int) -> Machine:
    return Machine((Device("cpu", "host", mib * 2**20, mib * 2**20),), 2)


def plan_for(machine: Machine, model: ModelSpec = SMALL, **asked: Any) -> DeploymentPlan:
    return resolve(EngineConfig(model="models/small", **asked), model, machine, "models/small")


def decision(plan: DeploymentPlan, name: str) -> tuple[str, str]:
    return next((one.reason, one.source) for one in plan.decisions if one.field == name)


@pytest.mark.parametrize("machine", [gpus(141), host(4096)])
def test_every_field_has_one_decision(machine: Machine) -> None:
    plan = plan_for(machine)
    decided = [one.field for one in plan.decisions]
    named = {one.name for one in fields(DeploymentPlan)} - {"ledger", "decisions", "kernel_buffers"}
    assert sorted(decided) == sorted(named)
    assert all(one.reason and one.value for one in plan.decisions)
    assert {one.source for one in plan.decisions} <= {"asked", "model", "machine", "default"}


def test_asked_settings_are_used_and_said() -> None:
    asked: dict[str, Any] = {
        "served_model_name": ("a", "b"),
        "max_model_len": 1000,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 300,
        "max_num_queued_reqs": 5,
        "block_size": 16,
        "num_speculative_tokens": 2,
        "overlap_scheduling": False,
        "enable_prefix_caching": False,
        "threads": 3,
        "seed": 11,
        "step_timeout_s": 9.0,
        "dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "device": "cpu",
        "quantization": "int8",
        "ops_backend": "reference",
        "loop_guard_tokens": 0,
        "loop_guard_repeats": 3,
    }
    plan = plan_for(host(4096), **asked)
    assert plan.served_names == ("a", "b")
    assert (plan.max_model_len, plan.max_sequences, plan.max_batch_tokens) == (1000, 7, 300)
    assert (plan.max_queued, plan.page_size, plan.num_drafts) == (5, 16, 2)
    assert (plan.run_ahead, plan.prefix_cache, plan.threads) == (0, False, 3)
    assert (plan.seed, plan.step_timeout_s, plan.layout.tp) == (11, 9.0, 2)
    assert (plan.compute_dtype, plan.kv_dtype, plan.device) == (BFLOAT16, BFLOAT16, "cpu")
    assert (plan.quantization, plan.ops_backend) == ("int8", "reference")
    assert (plan.loop_guard_tokens, plan.loop_guard_repeats) == (0, 3)
    unasked = {one.field for one in plan.decisions if one.source != "asked"}
    assert unasked == {"model", "dequantize", "num_pages"}


def test_v3_on_eight_devices() -> None:
    """141 GB each hold the full context; 96 GB a part of it; 80 GB not even the weights."""
    plan = plan_for(gpus(141), V3, tensor_parallel_size=8)
    assert plan.max_model_len == 163840
    assert (plan.compute_dtype, plan.dequantize) == (BFLOAT16, False)
    assert plan.kv_tokens > 4 * 163840
    part = plan_for(gpus(96), V3, tensor_parallel_size=8)
    assert 8192 < part.max_model_len < 163840
    assert decision(part, "max_model_len")[1] == "machine"
    assert "163,840" in decision(part, "max_model_len")[0]
    with pytest.raises(CapacityError, match=r"weights: experts 76\.1 GiB") as caught:
        plan_for(gpus(80), V3, tensor_parallel_size=8)
    assert "--tensor-parallel-size 16" in caught.value.fix


def test_formats_on_cpus() -> None:
    """float32 where it leaves half of the memory, else bfloat16, else the weights as stored."""
    plan = plan_for(host(7 * 2**20), V3)  # 7 TiB; the weights are 2.7 TB in float32
    assert (plan.compute_dtype, plan.dequantize) == (FLOAT32, True)
    plan = plan_for(host(3 * 2**20), V3)
    assert (plan.compute_dtype, plan.dequantize) == (BFLOAT16, True)
    assert "more than half" in decision(plan, "compute_dtype")[0]
    plan = plan_for(host(2**20), V3)
    assert (plan.compute_dtype, plan.dequantize) == (BFLOAT16, False)
    plain = replace(V3, weight_format=BFLOAT16)
    assert not plan_for(host(7 * 2**20), plain).dequantize


def _pool_bytes(plan: DeploymentPlan) -> int:
    return next(line.num_bytes for line in plan.ledger if line.part == "KV pages")


def test_hosts_keep_a_modest_pool() -> None:
    plan = plan_for(host(65536), max_num_seqs=2)
    assert plan.num_pages == 2 * 8192 // 64  # no more than two sequences can use
    plan = plan_for(host(2048))
    assert _pool_bytes(plan) <= 2048 * 2**20 / 8
    assert plan.num_pages >= 8192 // 64  # but one sequence of full length
    assert _pool_bytes(plan_for(host(65536))) <= 512 * 2**20
    more = plan_for(host(2048), gpu_memory_utilization=0.9)
    assert more.num_pages > plan.num_pages


def test_a_pool_of_a_given_size() -> None:
    page = 64 * kv_bytes_per_token(SMALL, FLOAT32, Layout())
    plan = plan_for(host(4096), kv_cache_memory_bytes=20 * page + 5)
    assert plan.num_pages == 20
    assert plan.max_model_len == 20 * 64
    assert decision(plan, "num_pages")[1] == "asked"
    with pytest.raises(CapacityError, match="kv_cache_memory_bytes") as caught:
        plan_for(host(4096), kv_cache_memory_bytes=4096 * 2**20)
    size = int(caught.value.fix.split()[-1])
    assert plan_for(host(4096), kv_cache_memory_bytes=size).num_pages == size // page


def test_served_names() -> None:
    assert plan_for(host(4096)).served_names == ("small",)
    plan = resolve(EngineConfig(), SMALL, host(4096), "somewhere/embedded")
    assert plan.served_names == ("fathom-embedded",)
    assert plan.model_path == "somewhere/embedded"


def test_batch_has_a_place_for_every_sequence() -> None:
    plan = plan_for(host(4096), max_num_batched_tokens=30, num_speculative_tokens=2)
    assert plan.max_sequences == 10
    plan = plan_for(host(65536), max_num_seqs=2000, max_model_len=64)
    assert plan.max_batch_tokens == 2000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "half"}, ("--dtype", "half", "65504")),
        ({"dtype": "float16"}, ("--dtype", "trained in")),
        ({"dtype": "bfloat"}, ("--dtype", "nearest: bfloat16")),
        ({"quantization": "awq"}, ("--quantization", "'awq'", "int8, int4 or fp8")),
        ({"quantization": "int5"}, ("--quantization", "'int5'", "nearest: int")),
        ({"ops_backend": "cpu"}, ("--ops-backend", "cpu, but not looked for")),
        ({"ops_backend": "cuda"}, ("--ops-backend", "'cuda'", "auto, cpu or reference")),
        ({"kv_cache_dtype": "fp8"}, ("--kv-cache-dtype", "fp8 on the reference", "auto or")),
        (
            {"dtype": "float32", "kv_cache_dtype": "bfloat16"},
            ("--kv-cache-dtype", "--dtype bfloat16 too"),
        ),
        ({"device": "cuda"}, ("--device", "has not", "auto or cpu")),
        ({"device": "cpus"}, ("--device", "nearest: cpu")),
        ({"tensor_parallel_size": 3}, ("num_attention_heads 4", "one of 1, 2, 4")),
        ({"max_model_len": 8193}, ("--max-model-len", "8,193", "8,192", "max_position")),
        (
            {"max_num_seqs": 8, "max_num_batched_tokens": 4},
            ("--max-num-batched-tokens", "at least 8"),
        ),
        (
            {"max_num_seqs": 8, "max_num_batched_tokens": 8, "num_speculative_tokens": 1},
            ("at least 16", "drafts"),
        ),
    ],
)
def test_contradictions_are_named(asked: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for(host(4096), **asked)
    for text in said:
        assert text in str(caught.value)


def test_more_ranks_than_devices_and_drafts_without_mtp() -> None:
    with pytest.raises(ConfigError, match="4 ranks on 2 CUDA devices"):
        plan_for(gpus(80, count=2), tensor_parallel_size=4)
    with pytest.raises(ConfigError, match="no MTP layer"):
        plan_for(host(4096), replace(SMALL, num_mtp_layers=0), num_speculative_tokens=1)
    with pytest.raises(ConfigError, match="no device"):
        resolve(EngineConfig(), SMALL, Machine((), 1), "x")


sizes = st.integers(60, 3000)
lengths = st.integers(1, 8192)


def _try(machine: Machine, **asked: Any) -> DeploymentPlan | None:
    try:
        return plan_for(machine, **asked)
    except CapacityError:
        return None


@given(
    mib=sizes, length=st.none() | lengths, tp=st.sampled_from([1, 2, 4]), drafts=st.integers(0, 2)
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("is_host", [True, False])
def test_bytes_stay_within_the_budget(
    is_host: bool, mib: int, length: int | None, tp: int, drafts: int
) -> None:
    machine = host(mib) if is_host else gpus(mib / 1024 + 0.8, count=4)
    plan = _try(
        machine, max_model_len=length, tensor_parallel_size=tp, num_speculative_tokens=drafts
    )
    if plan is None:
        return
    device = machine.devices[0]
    limit = 0.9 * device.free_bytes / tp if is_host else 0.92 * device.total_bytes
    assert total_bytes(plan.ledger) <= limit
    assert plan.kv_tokens >= plan.max_model_len
    assert plan.max_model_len == length or length is None
    assert _pool_bytes(plan) == plan.kv_tokens * kv_bytes_per_token(
        SMALL, plan.kv_dtype, Layout(), drafts
    )


@given(mib=sizes, more=st.integers(0, 2000), length=lengths)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("is_host", [True, False])
def test_more_memory_never_gives_less(is_host: bool, mib: int, more: int, length: int) -> None:
    """With the format given: float32 instead of bfloat16 would double every byte."""
    make = host if is_host else lambda mib: gpus(mib / 1024 + 0.8)
    asked: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.9}
    for demanded in (None, length):
        less = _try(make(mib), max_model_len=demanded, **asked)
        plenty = _try(make(mib + more), max_model_len=demanded, **asked)
        if less is not None:
            assert plenty is not None
            assert plenty.max_model_len >= less.max_model_len
            if demanded is not None:
                assert plenty.num_pages >= less.num_pages


@given(mib=sizes, first=lengths, second=lengths)
@settings(max_examples=60, deadline=None)
def test_a_longer_context_never_takes_fewer_bytes_nor_leaves_more_pages(
    mib: int, first: int, second: int
) -> None:
    short, long = sorted((first, second))
    machine = gpus(mib / 1024 + 0.8)
    smaller, larger = (_try(machine, max_model_len=length) for length in (short, long))
    if larger is None:
        return
    assert smaller is not None
    assert larger.num_pages <= smaller.num_pages

    def working_bytes(plan: DeploymentPlan) -> int:
        return next(line.num_bytes for line in plan.ledger if line.part.startswith("activations"))

    assert working_bytes(larger) >= working_bytes(smaller)


def _alternatives(fix: str) -> list[dict[str, Any]]:
    """The settings that an error's fix offers, one dictionary for each alternative."""
    kinds: dict[str, Any] = {
        "max_model_len": int,
        "gpu_memory_utilization": float,
        "kv_cache_memory_bytes": int,
        "dtype": str,
        "tensor_parallel_size": int,
    }
    offered = []
    for one in fix.split(", or "):
        match = re.match(r"--([\w-]+) (\S+)", one)
        if match:
            name = match[1].replace("-", "_")
            offered.append({name: kinds[name](match[2])})
            if one.endswith("and a smaller --max-model-len"):
                offered[-1]["max_model_len"] = 1
    return offered


@given(mib=sizes, length=lengths, pool_pages=st.none() | st.integers(0, 64))
@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize("is_host", [True, False])
def test_every_fix_that_an_error_offers_works(
    is_host: bool, mib: int, length: int, pool_pages: int | None
) -> None:
    machine = host(mib) if is_host else gpus(mib / 1024 + 0.8, free=0.97, count=4)
    asked: dict[str, Any] = {"max_model_len": length}
    if pool_pages is not None:
        asked["kv_cache_memory_bytes"] = (
            pool_pages * 64 * kv_bytes_per_token(SMALL, BFLOAT16, Layout()) + 1
        )
    try:
        plan_for(machine, **asked)
    except CapacityError as error:
        for offered in _alternatives(error.fix):
            plan = plan_for(machine, **{**asked, **offered})
            assert plan.kv_tokens >= plan.max_model_len


@given(mib=sizes)
@settings(max_examples=40, deadline=None)
def test_nothing_longer_than_what_was_said_to_fit_fits(mib: int) -> None:
    plan = _try(gpus(mib / 1024 + 0.8))
    if plan is None or plan.max_model_len == SMALL.max_position:
        return
    longer = plan.max_model_len + plan.page_size
    with pytest.raises(CapacityError, match="does not fit"):
        plan_for(gpus(mib / 1024 + 0.8), max_model_len=longer)
