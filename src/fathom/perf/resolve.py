"""What was asked, the model and the machine made into a plan: all decided, each with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fathom.config import EngineConfig
from fathom.errors import ConfigError
from fathom.perf.decide import (
    Notes,
    asked_dtype,
    choose_backend,
    choose_batch,
    choose_device,
    choose_drafts,
    choose_kv_dtype,
    choose_layout,
    choose_quantization,
    choose_served_names,
    choose_threads,
)
from fathom.perf.fit import Budget, Fitter
from fathom.perf.held_weights import Holding, weight_lines
from fathom.perf.memory import RESERVE_BYTES, total_bytes
from fathom.perf.working import WorkingSet
from fathom.spec.formats import BFLOAT16, FLOAT32, Format
from fathom.spec.hardware import Machine
from fathom.spec.model import ModelSpec
from fathom.spec.plan import DeploymentPlan
from fathom.units import format_bytes, format_count

_DEVICE_SHARE = 0.92
# Of the host's available memory: what may be used at all, and what the pool takes unasked.
_HOST_SHARE = 0.9
_HOST_KV_SHARE = 0.125


def resolve(
    config: EngineConfig, model: ModelSpec, machine: Machine, model_path: str
) -> DeploymentPlan:
    """The plan for serving `model`, whose files are at `model_path`, on `machine`.

    Raises: ConfigError where settings contradict each other, the model or the machine;
    CapacityError, with what would fit, where the memory is too small.
    """
    notes = Notes(config)
    notes.say("model", model, "by its config.json", "model", shown=model.architecture)
    if config.model is None:
        notes.say("model_path", model_path, "the embedded model: none was asked for", "default")
    else:
        notes.say("model_path", model_path, "as asked", "asked")
    device = choose_device(notes, machine)
    backend = choose_backend(notes, machine, device)
    fitter = _fitter(notes, model, machine, device, backend)
    working = fitter.working
    fit = fitter.fit(_demanded_length(config, model), model.max_position)
    kernels = replace(working, max_model_len=fit.max_model_len).kernels()
    _say_fit(notes, model, fitter, fit.max_model_len, fit.num_pages)
    return DeploymentPlan(
        model_path=model_path,
        served_names=choose_served_names(notes, model_path),
        model=model,
        layout=working.layout,
        device=device,
        compute_dtype=working.compute,
        kv_dtype=fitter.kv_dtype,
        page_size=working.page_size,
        num_pages=fit.num_pages,
        max_model_len=fit.max_model_len,
        max_batch_tokens=working.max_batch_tokens,
        max_sequences=working.max_sequences,
        max_queued=notes.setting("max_queued", "max_num_queued_reqs", "more get 429"),
        num_drafts=working.num_drafts,
        run_ahead=int(
            notes.setting("run_ahead", "overlap_scheduling", "the next is planned while one runs")
        ),
        prefix_cache=notes.setting("prefix_cache", "enable_prefix_caching", "it costs nothing"),
        threads=choose_threads(notes, machine, backend),
        seed=notes.setting("seed", "seed", "the same seeds at every start"),
        step_timeout_s=notes.setting("step_timeout_s", "step_timeout_s", "far above any step"),
        loop_guard_tokens=notes.setting(
            "loop_guard_tokens", "loop_guard_tokens", "long for a refrain"
        ),
        loop_guard_repeats=notes.setting("loop_guard_repeats", "loop_guard_repeats", "as above"),
        kernel_buffers=() if kernels is None else kernels.buffers(),
        ledger=fitter.lines(fit),
        decisions=tuple(notes.decisions),
        dequantize=working.dequantize,
        quantization=working.quantization,
        ops_backend=backend,
    )


def _fitter(notes: Notes, model: ModelSpec, machine: Machine, device: str, backend: str) -> Fitter:
    """Everything about memory but the pool and the context."""
    config = notes.config
    layout = choose_layout(notes, model, machine, device)
    budget = _budget(config, machine, device, layout.tp)
    num_drafts = choose_drafts(notes, model)
    quantization = choose_quantization(notes, model)

    def is_roomy(compute: Format) -> bool:
        """Whether dequantised weights leave half of the memory for the rest."""
        holding = Holding(compute=compute, dequantize=True, drafts=num_drafts > 0)
        lines = weight_lines(model, layout, holding)
        return total_bytes(lines) <= budget.limit_bytes // 2

    if backend == "cpu":
        reason = "the format of the kernels' activations"
        compute = notes.say("compute_dtype", BFLOAT16, reason, "machine", shown="bfloat16")
        dequantize = notes.say("dequantize", False, "kernels read weights as stored", "machine")
    else:
        compute, dequantize = _formats(notes, model, device, is_roomy)
    kv_dtype = choose_kv_dtype(notes, compute, backend)
    max_sequences, max_batch_tokens = choose_batch(notes, device, num_drafts)
    page_size = notes.setting("page_size", "block_size", "kernels read 64 best")
    working = WorkingSet(
        device=device,
        spec=model,
        layout=layout,
        compute=compute,
        dequantize=dequantize,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        max_model_len=model.max_position,
        num_drafts=num_drafts,
        quantization=quantization,
        ops_backend=backend,
        threads=max(1, (config.threads or machine.num_cores) // layout.tp),
        page_size=page_size,
    )
    return Fitter(working, kv_dtype, budget, config.kv_cache_memory_bytes)


def _budget(config: EngineConfig, machine: Machine, device: str, tp: int) -> Budget:
    """The memory of the poorest of the ranks."""
    devices = [one for one in machine.devices if one.kind == device]
    ranks_each = tp if device == "cpu" else 1
    used = devices[:1] if device == "cpu" else devices[:tp]
    free = min(one.free_bytes for one in used) // ranks_each
    total = min(one.total_bytes for one in used) // ranks_each
    asked, kv_bytes = config.gpu_memory_utilization, None
    if device == "cpu" and asked is None:
        limit, kv_bytes = int(free * _HOST_SHARE), int(free * _HOST_KV_SHARE)
        reason = f"{_HOST_SHARE:.0%} of the {format_bytes(free)} that are available"
    else:
        share = _DEVICE_SHARE if asked is None else asked
        limit = int(total * share)
        reason = f"{share:.0%} of {format_bytes(total)} (gpu_memory_utilization)"
        if free < limit:
            limit = free
            reason = f"the {format_bytes(free)} that other programs leave free"
    if ranks_each > 1:
        reason += f", of which each of {tp} ranks has its part"
    return Budget(
        limit_bytes=limit,
        free_bytes=free,
        total_bytes=total,
        kv_bytes=kv_bytes,
        reserve_bytes=RESERVE_BYTES[device],
        is_host=device == "cpu",
        reason=reason,
        source="machine" if asked is None else "asked",
    )


def _formats(
    notes: Notes, model: ModelSpec, device: str, is_roomy: Callable[[Format], bool]
) -> tuple[Format, bool]:
    """The compute format, and whether quantised matrices are multiplied out when loaded."""
    asked = asked_dtype(notes.config.dtype, "--dtype (dtype)")
    if asked is not None:
        compute = notes.say("compute_dtype", asked, "as asked", "asked", shown=asked.name)
    elif device == "cuda":
        reason = "the format that the model was made for, and fast here"
        compute = notes.say("compute_dtype", BFLOAT16, reason, "model", shown="bfloat16")
    elif is_roomy(FLOAT32):
        reason = "CPUs compute it at full rate, and the weights fit in it"
        compute = notes.say("compute_dtype", FLOAT32, reason, "machine", shown="float32")
    else:
        reason = "float32 weights would take more than half of the memory"
        compute = notes.say("compute_dtype", BFLOAT16, reason, "machine", shown="bfloat16")
    if model.weight_format.block is None:
        return compute, notes.say("dequantize", False, "the weights are not quantised", "model")
    if device == "cuda":
        return compute, notes.say(
            "dequantize", False, "FP8 weights take half the memory", "default"
        )
    if is_roomy(compute):
        return compute, notes.say("dequantize", True, "CPUs have no FP8 arithmetic", "machine")
    reason = "dequantised weights would take more than half of the memory"
    return compute, notes.say("dequantize", False, reason, "machine")


def _demanded_length(config: EngineConfig, model: ModelSpec) -> int | None:
    demanded = config.max_model_len
    if demanded is not None and demanded > model.max_position:
        raise ConfigError(
            "--max-model-len (max_model_len)",
            found=format_count(demanded),
            wanted=f"at most {format_count(model.max_position)}, the model's "
            "max_position_embeddings",
        )
    return demanded


def _say_fit(notes: Notes, model: ModelSpec, fitter: Fitter, length: int, num_pages: int) -> None:
    config, budget = notes.config, fitter.budget
    if config.max_model_len is not None:
        notes.say("max_model_len", length, "as asked", "asked")
    elif length == model.max_position:
        notes.say("max_model_len", length, "the model's own", "model")
    else:
        reason = f"the largest that fits; the model's is {format_count(model.max_position)}"
        notes.say("max_model_len", length, reason, "machine")
    tokens = f"{format_count(num_pages * fitter.working.page_size)} tokens of KV"
    if config.kv_cache_memory_bytes is not None:
        notes.say("num_pages", num_pages, f"as asked: {tokens}", "asked")
    elif num_pages < fitter.pages(length):
        reason = f"{tokens}: enough for the sequences of a step, or a modest share of the memory"
        notes.say("num_pages", num_pages, reason, "default")
    else:
        notes.say(
            "num_pages", num_pages, f"{tokens}: what is left of {budget.reason}", budget.source
        )
