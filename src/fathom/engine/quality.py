"""What formats of a checkpoint's weights cost: each is loaded as the engine would and compared
with the reference backend in float32.

Importing this module imports torch, by way of the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from fathom.config import EngineConfig
from fathom.core.loop import EngineCore
from fathom.engine.answers import score_tasks
from fathom.engine.heldout import Question
from fathom.engine.loading import scheduler_config
from fathom.engine.text_side import TextSide, model_directory
from fathom.errors import ConfigError
from fathom.perf.resolve import resolve
from fathom.runtime.device import probe
from fathom.runtime.quality import LoadedModel, Predictions, compare
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.spec.quality import Document, FormatQuality, TaskScore, summarize
from fathom.weights.open import open_checkpoint

# float32: the reference backend in it; bf16: in bfloat16, whatever is stored; stored: as the
# checkpoint stores it; the others as `--quantization` has them.
QualityFormat = Literal["float32", "bf16", "stored", "fp8", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class Material:
    """What to measure on. Without `questions` no task is scored."""

    text: TextSide
    documents: tuple[Document, ...]
    questions: tuple[Question, ...] = ()


def plan_of(config: EngineConfig, name: QualityFormat) -> DeploymentPlan:
    """The plan by which the engine would run `config`'s checkpoint in a format.

    Raises: ConfigError, CheckpointError, CapacityError.
    """
    if config.tensor_parallel_size > 1:
        raise ConfigError("quality is measured on one rank", fix="leave --tensor-parallel-size out")
    if name == "float32":
        config = replace(config, dtype="float32", ops_backend="auto", kv_cache_dtype="auto")
    elif name == "bf16":
        config = replace(config, dtype="bfloat16")
    elif name != "stored":
        config = replace(config, quantization=name)
    directory = model_directory(config)
    spec = open_checkpoint(directory).spec
    plan = resolve(config, spec, probe(config.device), str(directory))
    if name in ("float32", "bf16"):
        plan = replace(plan, dequantize=True)
    return plan


def evaluate(
    config: EngineConfig,
    formats: Sequence[str],
    material: Material,
    *,
    reference_config: EngineConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[FormatQuality]:
    """Float32 first, as the reference, then each of `formats`.

    `reference_config` names another checkpoint for the reference, whose copy in fewer bits
    `config`'s is. `say` hears what runs. One model is in memory at a time, beside the reference's
    head. Raises: ConfigError for an unknown format; as `plan_of`; EngineError.
    """
    wanted = [_known(name) for name in formats if name != "float32"]
    say("float32 (reference)")
    plan = plan_of(reference_config or config, "float32")
    reference, tasks = _run(plan, material)
    rows = [_report("float32", plan, reference, reference, tasks)]
    for name in wanted:
        say(name)
        plan = plan_of(config, name)
        predictions, tasks = _run(plan, material)
        rows.append(_report(name, plan, reference, predictions, tasks))
    return rows


def _known(name: str) -> QualityFormat:
    if name not in get_args(QualityFormat):
        raise ConfigError("--formats", found=repr(name), wanted=", ".join(get_args(QualityFormat)))
    return cast(QualityFormat, name)


def _run(plan: DeploymentPlan, material: Material) -> tuple[Predictions, tuple[TaskScore, ...]]:
    model = LoadedModel(plan)
    predictions = model.predict(material.documents)
    if not material.questions:
        return predictions, ()
    executor = model.executor()
    try:
        core = EngineCore(executor, scheduler_config(plan), step_timeout_s=plan.step_timeout_s)
        tasks = score_tasks(core, material.text, material.questions, plan.max_model_len)
    finally:
        executor.close()
    return predictions, tasks


def _report(
    name: str,
    plan: DeploymentPlan,
    reference: Predictions,
    predictions: Predictions,
    tasks: tuple[TaskScore, ...],
) -> FormatQuality:
    model = plan.model
    num_bytes = sum(
        row.local_bytes(
            Shard(plan.layout),
            plan.compute_dtype,
            dequantize=plan.dequantize,
            quantization=plan.quantization,
        )
        for row in parameter_table(model)
        if row.layer is None or row.layer < model.num_layers
    )
    divergence = summarize(compare(reference, predictions))
    return FormatQuality(name, plan.ops_backend, plan.kv_dtype.name, num_bytes, divergence, tasks)
