"""What `fathom simulate` simulates: from names and flags to a deployment and the time of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from fathom.commands.hardware import read_catalogue, read_machines
from fathom.config import EngineConfig, check_setting, setting
from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.errors import ConfigError
from fathom.perf.cost import cost_model
from fathom.perf.decide import BATCH_TOKENS, MAX_SEQUENCES
from fathom.perf.fit import Budget, Fit, Fitter
from fathom.perf.memory import RESERVE_BYTES
from fathom.perf.parts import Formats
from fathom.perf.precision import Precision, caches, precisions
from fathom.perf.shape import StepTime
from fathom.perf.simulation import Deployment, Routing
from fathom.perf.working import WorkingSet
from fathom.spec.dense import DenseSpec
from fathom.spec.families import Model, check_layout
from fathom.spec.formats import Format
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.units import format_bytes, format_count
from fathom.weights.describe import describe_model

ENGINE_FIELDS = (
    *("tensor_parallel_size", "quantization", "kv_cache_dtype", "max_model_len"),
    *("gpu_memory_utilization", "block_size", "max_num_seqs", "max_num_batched_tokens"),
    *("max_num_queued_reqs", "enable_prefix_caching", "overlap_scheduling"),
    "num_speculative_tokens",
)
"""Settings of the engine that a simulation follows."""
_ROUTINGS: tuple[Routing, ...] = ("least_loaded", "round_robin")
_SHARE, _DEPTH = 0.92, 2
_HELD = ("int8", "int4", "fp8")
_ACCEPTANCE = 0.85
_DRAFTS = "--num-speculative-tokens (num_speculative_tokens)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareConfig:
    """The machines, and how a model is divided over them."""

    gpu: str | None = setting(
        None,
        "GPUs, such as 8xH20-96; all of them are used. cpu: the CPUs of this machine, once 'bench "
        "calibrate' has measured them.",
        "--gpu",
    )
    nodes: int | None = setting(None, "Servers that each have the GPUs of --gpu.", "--nodes")
    network: str | None = setting(
        None, "Link of a GPU to those of other servers, such as ib-ndr.", "--network"
    )
    hardware: str | None = setting(None, "TOML file with GPUs and links of your own.", "--hardware")
    calibration: str | None = setting(
        None,
        "Measured times of kernels. Not given: what 'bench calibrate' kept for these GPUs, "
        "else those that come with fathom.",
        "--calibration",
    )
    data_parallel_size: int = setting(
        1,
        "Groups of ranks that attend to sequences of their own (DP attention).",
        "--data-parallel-size",
        "-dp",
        "--dp-size",
        "--dp",
    )
    expert_parallel_size: int | None = setting(
        None,
        "Groups that the experts are divided into. Not given: one for each rank with DP "
        "attention, else 1.",
        "--expert-parallel-size",
        "-ep",
        "--ep-size",
        "--ep",
    )
    pipeline_parallel_size: int = setting(
        1,
        "Stages that the layers are divided into.",
        "--pipeline-parallel-size",
        "-pp",
        "--pp-size",
        "--pp",
    )
    routing: str = setting(
        "least_loaded", "Which group a request goes to.", "--routing", wanted=" or ".join(_ROUTINGS)
    )
    # Source: DeepSeek-V3 report (arXiv 2412.19437), section 5.4.3: 85 to 90 % of second tokens.
    draft_acceptance: float = setting(
        _ACCEPTANCE,
        "Chance that a draft of the MTP layer is right.",
        "--draft-acceptance",
        wanted="0 to 1",
    )

    def __post_init__(self) -> None:
        check = partial(check_setting, HardwareConfig)
        check("gpu", self.gpu is not None, self.gpu, "GPUs, such as 8xH20-96")
        for name in ("data_parallel_size", "expert_parallel_size", "pipeline_parallel_size"):
            value = getattr(self, name)
            check(name, value is None or value >= 1, value, "1 or more")
        chance = self.draft_acceptance
        check("draft_acceptance", 0 <= chance <= 1, chance, "0 to 1")
        check("routing", self.routing in _ROUTINGS, self.routing, " or ".join(_ROUTINGS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployment, its time of a step, and rows that say what they are."""

    deployment: Deployment
    cost: StepTime
    about: tuple[tuple[str, str], ...]


def target_of(model: str, asked: HardwareConfig, engine: EngineConfig, *, tp: int | None) -> Target:
    """The deployment of a model by name or directory. `tp` None takes all GPUs.

    Raises: ConfigError and CapacityError, also for a model that does not fit.
    """
    known = describe_model(model)
    assert asked.gpu is not None
    cluster, calibration = read_machines(
        asked.gpu,
        nodes=asked.nodes,
        network=asked.network,
        calibration=asked.calibration,
        catalogue=read_catalogue(asked.hardware),
    )
    layout = _layout(known.spec, cluster, asked, tp)
    held = _weights(known.spec, cluster, engine.quantization)
    formats = Formats(weights=held.format, kv=_kv_format(known.spec, engine.kv_cache_dtype))
    drafts, drafting = _drafting(known.spec, engine.num_speculative_tokens or 0)
    working = WorkingSet(
        device=cluster.device,
        ops_backend=cluster.ops_backend,
        threads=max(1, cluster.host_threads),
        spec=known.spec,
        layout=layout,
        max_batch_tokens=engine.max_num_batched_tokens or BATCH_TOKENS[cluster.device],
        max_sequences=engine.max_num_seqs or MAX_SEQUENCES[cluster.device],
        num_drafts=drafts,
        quantization=held.quantization,
        dequantize=held.dequantize,
        page_size=engine.block_size,
    )
    fitter = Fitter(working, formats.kv, _budget(cluster, engine), None)
    fit = fitter.fit(engine.max_model_len, known.spec.max_position)
    cost = cost_model(drafting, layout, cluster, formats, calibration)
    deployment = _deployment(working, fit, asked, engine, calibration.first_token_s)
    about = (
        ("Model", f"{known.name}, {held.format.name}, KV {formats.kv.name}"),
        ("Machines", f"{cluster.num_gpus} x {cluster.gpu.name}, {cluster.nodes} node(s)"),
        ("Layout", f"tp={layout.tp} dp={layout.dp} ep={layout.ep} pp={layout.pp}"),
        *_limits(deployment),
        ("Times", f"{cost.confidence} ({calibration.name}, {calibration.date})"),
    )
    return Target(deployment=deployment, cost=cost, about=about)


def _deployment(
    working: WorkingSet, fit: Fit, asked: HardwareConfig, engine: EngineConfig, entry_s: float
) -> Deployment:
    layout, can_overlap = working.layout, engine.overlap_scheduling
    return Deployment(
        capacity=Capacity(
            num_pages=fit.num_pages,
            page_size=working.page_size,
            max_batch_tokens=working.max_batch_tokens,
            max_sequences=working.max_sequences,
            depth=layout.pp if layout.pp > 1 else _DEPTH if can_overlap else 1,
        ),
        scheduler=SchedulerConfig(
            max_model_len=fit.max_model_len,
            max_queued=engine.max_num_queued_reqs,
            num_drafts=working.num_drafts,
            # A sequence has one step in the pipeline; the next follows from it.
            run_ahead=can_overlap and layout.pp == 1,
            prefix_cache=engine.enable_prefix_caching,
        ),
        num_groups=layout.dp,
        num_stages=layout.pp,
        routing="round_robin" if asked.routing == "round_robin" else "least_loaded",
        entry_s=entry_s,
        draft_acceptance=asked.draft_acceptance,
    )


def _limits(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """What the groups have room for, and what they draft."""
    capacity, scheduler = deployment.capacity, deployment.scheduler
    tokens = format_count(capacity.num_pages * capacity.page_size)
    longest = format_count(scheduler.max_model_len)
    yield "KV", f"{deployment.num_groups} x {tokens} tokens, at most {longest} a sequence"
    sequences, positions = capacity.max_sequences, capacity.max_batch_tokens
    yield "Step", f"at most {sequences} sequences and {positions} tokens of each group"
    if scheduler.num_drafts:
        right = f"{deployment.draft_acceptance:.0%}"
        yield "Drafts", f"{scheduler.num_drafts} a step, {right} of them right"


def _layout(model: Model, cluster: Cluster, asked: HardwareConfig, tp: int | None) -> Layout:
    count, dp, pp = cluster.num_gpus, asked.data_parallel_size, asked.pipeline_parallel_size
    tp = count // (dp * pp) if tp is None else tp
    if tp * dp * pp != count:
        raise ConfigError(
            "the layout does not divide the GPUs",
            found=f"--data-parallel-size {dp}, --tensor-parallel-size {tp}, "
            f"--pipeline-parallel-size {pp}",
            wanted=f"a product of {count}: all GPUs are used",
        )
    has_experts = not isinstance(model, DenseSpec) and model.moe is not None
    ep = asked.expert_parallel_size
    if ep is None:
        ep = tp * dp if dp > 1 and has_experts else 1
    layout = Layout(tp=tp, dp=dp, ep=ep, pp=pp)
    check_layout(model, layout)
    return layout


def _weights(model: Model, cluster: Cluster, asked: str | None) -> Precision:
    """How matrices are held: as they are stored where the GPUs compute in that, else in what keeps
    the answers. Raises: ConfigError for another name, or what the GPUs have no units for."""
    if asked not in (None, "none", *_HELD):
        wanted = f"none, {', '.join(_HELD)}"
        raise ConfigError("--quantization (quantization)", found=repr(asked), wanted=wanted)
    return precisions(model, cluster, asked if asked in _HELD else None)[0]


def _kv_format(model: Model, asked: str) -> Format:
    if asked not in ("auto", "bfloat16", "fp8"):
        wanted = "auto, bfloat16 or fp8"
        raise ConfigError("--kv-cache-dtype (kv_cache_dtype)", found=asked, wanted=wanted)
    return caches(model, "fp8" if asked == "fp8" else "bf16")[0]


def _drafting(model: Model, num_drafts: int) -> tuple[int, Model]:
    """Tokens drafted a step, and the model whose steps take as long: with a layer more for each.

    Raises: ConfigError for a model that has no layer to draft with.
    """
    if not num_drafts:
        return 0, model
    if isinstance(model, DenseSpec) or not model.num_mtp_layers:
        found = f"{num_drafts}, but the model has no MTP layer"
        raise ConfigError(_DRAFTS, found=found, wanted="0, or a model with its MTP layer")
    return num_drafts, replace(model, num_layers=model.num_layers + num_drafts)


def _budget(cluster: Cluster, engine: EngineConfig) -> Budget:
    memory, share = cluster.gpu.memory_bytes, engine.gpu_memory_utilization or _SHARE
    return Budget(
        limit_bytes=int(memory * share),
        free_bytes=memory,
        total_bytes=memory,
        kv_bytes=None,
        reserve_bytes=RESERVE_BYTES[cluster.device],
        is_host=cluster.is_host,
        reason=f"{share:.0%} of {format_bytes(memory)} (gpu_memory_utilization)",
        source="asked" if engine.gpu_memory_utilization else "default",
    )
