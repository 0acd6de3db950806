"""Writes what was planned as the file that `fathom serve --config` takes."""

from __future__ import annotations

from pathlib import Path

from fathom.commands.config_file import write_toml
from fathom.commands.files import write_file
from fathom.commands.plan import Answer
from fathom.commands.plan_text import layout_text, machine
from fathom.perf.candidate import Candidate
from fathom.spec.formats import BFLOAT16
from fathom.spec.hardware import Cluster
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout


def lacking(one: Candidate, cluster: Cluster) -> list[str]:
    """What the engine would have to run for this candidate, and does not yet."""
    found = []
    if not isinstance(one.working.spec, ModelSpec):
        found.append(one.working.spec.architecture)
    if cluster.nodes > 1:
        found.append("--nodes")
    found += [name for name in ("dp", "ep", "pp") if getattr(one.layout, name) > 1]
    # The CPU kernels attend to either cache.
    if one.kv != BFLOAT16 and not cluster.is_host:
        found.append(f"KV {one.kv.name}")
    if one.precision.dequantize:
        found.append("fp8 -> bf16")
    return found


def emit(answer: Answer, path: Path) -> list[str]:
    """Write the best candidate that the engine runs; what to tell about it.

    Raises: ConfigError where it runs none, or where the file cannot be written.
    """
    words, best = answer.asked.words, answer.best
    runs = [one for one in answer.candidates if one.fits and not lacking(one, answer.cluster)]
    why = ", ".join(lacking(best, answer.cluster))
    if not best.fits:
        raise words.error("emit_no")
    if not runs:
        raise words.error("emit", found=why)
    notes = [words("text.emitted_other", why=why)] if runs[0] is not best else []
    comments = [
        f"{answer.model.name}: {machine(answer.cluster)}",
        layout_text(runs[0], words),
        *notes,
    ]
    text = write_toml({"engine": settings(answer, runs[0])}, comments)
    write_file("--emit", path, (text.encode(),))
    return [*notes, words("text.emitted", path=path)]


def settings(answer: Answer, one: Candidate) -> dict[str, object]:
    """The engine's settings, by the names of `EngineConfig`."""
    working = one.working
    assert one.layout == Layout(tp=one.layout.tp)
    is_here = Path(answer.asked.model).is_dir()
    found: dict[str, object] = {
        "model": str(Path(answer.asked.model).resolve()) if is_here else answer.model.name,
        "device": working.device,
        "dtype": working.compute.name,
        "kv_cache_dtype": "bfloat16" if one.kv == BFLOAT16 else "fp8",
        "tensor_parallel_size": one.layout.tp,
        "max_model_len": one.context,
        "max_num_seqs": working.max_sequences,
        "max_num_batched_tokens": working.max_batch_tokens,
        "block_size": working.page_size,
        "gpu_memory_utilization": answer.asked.demand.share,
    }
    if answer.cluster.is_host:
        found["threads"] = working.threads
    if working.quantization is not None:
        found["quantization"] = working.quantization
    return found
