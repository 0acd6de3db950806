"""`fathom bench calibrate [MODEL]`: fits the cost model to the machine at hand, and keeps it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from fathom import __version__, log
from fathom.commands.files import write_file
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.serve import set_model
from fathom.config import EngineConfig, environment_data_dir
from fathom.errors import ConfigError
from fathom.perf.calibrate import Fit, cases, fit
from fathom.perf.calibration import Calibration, keep
from fathom.perf.parts import Formats
from fathom.spec.formats import BFLOAT16, FP8_BLOCK, INT8_CHANNEL, int4_group
from fathom.spec.plan import DeploymentPlan

_DOC = """\
Times steps of a checkpoint (the embedded model where none is given) through the executor that
serves: batches that decode and pieces of prompts. Fits the cost model's rates to two thirds of
them, says how far off the rest is, and keeps the result for `fathom plan` and `fathom simulate`,
which then say that they were measured here. CPUs are `--gpu cpu` there.

  fathom bench calibrate
  fathom bench calibrate ./V2-Lite --quantization int4"""
_HELD = {"int8": INT8_CHANNEL, "int4": int4_group(128), "fp8": FP8_BLOCK}
# Of bench/results/scheduler.json: 0.45 ms for a step of 256 sequences.
_HOST_STEP_S, _HOST_SEQUENCE_S = 3e-4, 1e-6


def main(arguments: list[str]) -> int:
    """Measure, fit, keep; gives the exit code. Raises: FathomError."""
    parser = FlagParser("bench calibrate", _DOC)
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each step. Default: 5.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there instead")
    add_flags(parser, EngineConfig, "engine")
    namespace = parser.parse(arguments)
    set_model(namespace)
    if namespace.repeats < 1:
        raise ConfigError("--repeats", found=str(namespace.repeats), wanted="1 or more")
    log.configure("warning")
    found, plan = _measure(from_flags(EngineConfig, namespace), namespace.repeats)
    if namespace.output is not None:
        write_file("--output", namespace.output, (found.calibration.to_json().encode(),))
        path = namespace.output
    else:
        path = keep(found.calibration, environment_data_dir())
    print(told(found, plan))
    print(f"kept in {path}")
    return 0


def _measure(config: EngineConfig, repeats: int) -> tuple[Fit, DeploymentPlan]:
    # These import torch.
    from fathom.engine.measure import time_steps
    from fathom.engine.text_side import model_directory
    from fathom.perf.resolve import resolve
    from fathom.runtime.device import probe
    from fathom.weights.open import open_checkpoint

    if config.tensor_parallel_size > 1:
        raise ConfigError("steps are timed on one rank", fix="leave --tensor-parallel-size out")
    directory, machine = model_directory(config), probe(config.device)
    plan = resolve(config, open_checkpoint(directory).spec, machine, str(directory))
    wanted = cases(plan.max_sequences, plan.max_batch_tokens, plan.max_model_len, plan.kv_tokens)
    steps = time_steps(plan, wanted, repeats=repeats, say=lambda line: print(line, file=sys.stderr))
    device = machine.devices[0]
    name = device.name
    if device.kind == "cpu":
        name += f", {machine.cpu_isa or 'no kernels'}, {plan.threads} threads"
    weights = plan.compute_dtype if plan.dequantize else plan.model.weight_format
    if plan.quantization is not None:
        weights = _HELD[plan.quantization]
    start = Calibration(
        name=f"{name}, {weights.name}",
        machine=name,
        source=f"fathom bench calibrate {__version__}, {len(steps)} steps of {plan.model_path}",
        # To the second: the newest of a day counts.
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        laws={},
        host_step_s=_HOST_STEP_S,
        host_sequence_s=_HOST_SEQUENCE_S,
        is_here=True,
        weights=weights.name,
        threads=plan.threads if device.kind == "cpu" else 0,
        memory_bytes=device.total_bytes,
    )
    formats = Formats(weights=weights, kv=plan.kv_dtype, compute=BFLOAT16)
    return fit(plan.model, formats, steps, start), plan


def told(found: Fit, plan: DeploymentPlan) -> str:
    """What was fitted, and how well."""
    calibration, lines = found.calibration, []
    lines.append(f"{calibration.machine}: weights in {calibration.weights}")
    law = calibration.law("gemm", calibration.weights)
    lines.append(f"  memory   {calibration.bytes_s * law.bandwidth / 1e9:.1f} GB/s of weights")
    peak = calibration.peaks["bfloat16"]
    lines.append(f"  compute  {peak * law.compute / 1e9:.0f} Gflop/s of products")
    fixed_ms = calibration.layer_s * plan.model.num_layers * 1000
    lines.append(f"  fixed    {fixed_ms:.2f} ms a step")
    lines.append(
        f"  {len(found.held_out)} steps that were not fitted: median error "
        f"{found.median_error:.1%}, from {_worst(found):+.1%} at worst"
    )
    return "\n".join(lines)


def _worst(found: Fit) -> float:
    errors = [predicted / seconds - 1 for predicted, seconds in found.held_out]
    return max(errors, key=abs)
