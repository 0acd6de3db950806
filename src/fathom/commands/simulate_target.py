"""What `fathom simulate` simulates: from names and flags to a deployment and the time of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from fathom.commands.hardware import read_calibration, read_catalogue
from fathom.config import EngineConfig, check_setting, setting
from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.errors import ConfigError
from fathom.perf.cost import cost_model
from fathom.perf.fit import Budget, Fitter
from fathom.perf.memory import RESERVE_BYTES
from fathom.perf.parts import Formats
from fathom.perf.precision import Precision, precisions
from fathom.perf.shape import StepTime
from fathom.perf.simulation import Deployment, Routing
from fathom.perf.working import WorkingSet
from fathom.spec.catalogue import parse_cluster
from fathom.spec.dense import DenseSpec
from fathom.spec.families import Model, check_layout
from fathom.spec.formats import BFLOAT16, FP8_LATENT, Format
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.units import format_bytes, format_count
from fathom.weights.describe import describe_model

ENGINE_FIELDS = (
    *("tensor_parallel_size", "quantization", "kv_cache_dtype", "max_model_len"),
    *("gpu_memory_utilization", "block_size", "max_num_seqs", "max_num_batched_tokens"),
    *("max_num_queued_reqs", "enable_prefix_caching", "overlap_scheduling"),
)
"""Settings of the engine that a simulation follows."""
_ROUTINGS: tuple[Routing, ...] = ("least_loaded", "round_robin")
_SHARE, _MAX_SEQUENCES, _BATCH_TOKENS, _DEPTH = 0.92, 256, 8192, 2
_HELD = ("int8", "int4", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareConfig:
    """The machines, and how a model is divided over them."""

    gpu: str | None = field(
        default=None, metadata=setting("GPUs, such as 8xH20-96; all of them are used.", "--gpu")
    )
    nodes: int | None = field(
        default=None, metadata=setting("Servers that each have the GPUs of --gpu.", "--nodes")
    )
    network: str | None = field(
        default=None,
        metadata=setting("Link of a GPU to those of other servers, such as ib-ndr.", "--network"),
    )
    hardware: str | None = field(
        default=None, metadata=setting("TOML file with GPUs and links of your own.", "--hardware")
    )
    calibration: str | None = field(
        default=None,
        metadata=setting(
            "Measured times of kernels. Not given: what 'bench calibrate' kept for these GPUs, "
            "else those that come with fathom.",
            "--calibration",
        ),
    )
    data_parallel_size: int = field(
        default=1,
        metadata=setting(
            "Groups of ranks that attend to sequences of their own (DP attention).",
            "--data-parallel-size",
            "-dp",
            "--dp-size",
            "--dp",
        ),
    )
    expert_parallel_size: int | None = field(
        default=None,
        metadata=setting(
            "Groups that the experts are divided into. Not given: one for each rank with DP "
            "attention, else 1.",
            "--expert-parallel-size",
            "-ep",
            "--ep-size",
            "--ep",
        ),
    )
    routing: str = field(
        default="least_loaded",
        metadata=setting(
            "Which group a request goes to.", "--routing", wanted=" or ".join(_ROUTINGS)
        ),
    )

    def __post_init__(self) -> None:
        check = partial(check_setting, HardwareConfig)
        check("gpu", self.gpu is not None, self.gpu, "GPUs, such as 8xH20-96")
        for name in ("data_parallel_size", "expert_parallel_size"):
            value = getattr(self, name)
            check(name, value is None or value >= 1, value, "1 or more")
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
    catalogue = read_catalogue(asked.hardware)
    assert asked.gpu is not None
    cluster = parse_cluster(asked.gpu, asked.nodes, network=asked.network, catalogue=catalogue)
    layout = _layout(known.spec, cluster, asked, tp)
    held = _weights(known.spec, cluster, engine.quantization)
    formats = Formats(weights=held.format, kv=_kv_format(known.spec, engine.kv_cache_dtype))
    working = WorkingSet(
        device="cuda",
        spec=known.spec,
        layout=layout,
        max_batch_tokens=engine.max_num_batched_tokens or _BATCH_TOKENS,
        max_sequences=engine.max_num_seqs or _MAX_SEQUENCES,
        quantization=held.quantization,
        dequantize=held.dequantize,
        page_size=engine.block_size,
    )
    fitter = Fitter(working, formats.kv, _budget(cluster, engine), None)
    fit = fitter.fit(engine.max_model_len, known.spec.max_position)
    calibration = read_calibration(asked.calibration, cluster)
    cost = cost_model(known.spec, layout, cluster, formats, calibration)
    deployment = Deployment(
        capacity=Capacity(
            num_pages=fit.num_pages,
            page_size=engine.block_size,
            max_batch_tokens=working.max_batch_tokens,
            max_sequences=working.max_sequences,
            depth=_DEPTH if engine.overlap_scheduling else 1,
        ),
        scheduler=SchedulerConfig(
            max_model_len=fit.max_model_len,
            max_queued=engine.max_num_queued_reqs,
            run_ahead=engine.overlap_scheduling,
            prefix_cache=engine.enable_prefix_caching,
        ),
        num_groups=layout.dp,
        routing="round_robin" if asked.routing == "round_robin" else "least_loaded",
        entry_s=calibration.first_token_s,
    )
    kv_tokens = fit.num_pages * engine.block_size
    about = (
        ("Model", f"{known.name}, {held.format.name}, KV {formats.kv.name}"),
        ("Machines", f"{cluster.num_gpus} x {cluster.gpu.name}, {cluster.nodes} node(s)"),
        ("Layout", f"tp={layout.tp} dp={layout.dp} ep={layout.ep}"),
        ("KV", f"{layout.dp} x {format_count(kv_tokens)} tokens, "
               f"at most {format_count(fit.max_model_len)} a sequence"),
        ("Step", f"at most {working.max_sequences} sequences and {working.max_batch_tokens} tokens "
                 "of each group"),
        ("Times", f"{cost.confidence} ({calibration.name}, {calibration.date})"),
    )  # fmt: skip
    return Target(deployment=deployment, cost=cost, about=about)


def _layout(model: Model, cluster: Cluster, asked: HardwareConfig, tp: int | None) -> Layout:
    count, dp = cluster.num_gpus, asked.data_parallel_size
    tp = count // dp if tp is None else tp
    if tp * dp != count:
        raise ConfigError(
            "the layout does not divide the GPUs",
            found=f"--data-parallel-size {dp}, --tensor-parallel-size {tp}",
            wanted=f"a product of {count}: all GPUs are used",
        )
    has_experts = not isinstance(model, DenseSpec) and model.moe is not None
    ep = asked.expert_parallel_size
    if ep is None:
        ep = tp * dp if dp > 1 and has_experts else 1
    layout = Layout(tp=tp, dp=dp, ep=ep)
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
    if asked in ("auto", "bfloat16"):
        return BFLOAT16
    if asked == "fp8" and not isinstance(model, DenseSpec):
        return FP8_LATENT
    wanted = "auto or bfloat16" + ("" if isinstance(model, DenseSpec) else ", or fp8")
    raise ConfigError("--kv-cache-dtype (kv_cache_dtype)", found=asked, wanted=wanted)


def _budget(cluster: Cluster, engine: EngineConfig) -> Budget:
    memory, share = cluster.gpu.memory_bytes, engine.gpu_memory_utilization or _SHARE
    return Budget(
        limit_bytes=int(memory * share),
        free_bytes=memory,
        total_bytes=memory,
        kv_bytes=None,
        reserve_bytes=RESERVE_BYTES["cuda"],
        is_host=False,
        reason=f"{share:.0%} of {format_bytes(memory)} (gpu_memory_utilization)",
        source="asked" if engine.gpu_memory_utilization else "default",
    )
