"""What a machine with a CUDA GPU gives: one command, one JSON with raw samples.

    python bench/gpu_smoke.py [--wheels DIR] [--parts a,b] [--output FILE]
    python bench/gpu_smoke.py --dry-run       every part, tiny, on the CPU

Needs torch, numpy and safetensors, and no installation of fathom. Each part runs in a process of
its own with a time limit, so that a kernel that crashes or hangs costs its part only; what went
wrong is recorded with it. The exit status is 0 when every part that could run did.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

# Part: (module, function, package that it needs).
PARTS: dict[str, tuple[str, str, str | None]] = {
    "facts": ("gpu.facts", "run", None),
    "ops": ("gpu.op_check", "run", None),
    "model": ("gpu.model_check", "run", None),
    "share": ("gpu.share", "run", None),
    "torch_matrices": ("gpu.matrices", "run_torch", None),
    "deep_gemm_matrices": ("gpu.matrices", "run_deep_gemm", "deep_gemm"),
    "flash_mla_attention": ("gpu.attention", "run_flash_mla", "flash_mla"),
    "flashinfer_attention": ("gpu.attention", "run_flashinfer", "flashinfer"),
    "flashinfer_routing": ("gpu.routing", "run_flashinfer", "flashinfer"),
    "flashinfer_matrices": ("gpu.matrices", "run_flashinfer", "flashinfer"),
    "sgl_kernel_routing": ("gpu.routing", "run_sgl_kernel", "sgl_kernel"),
    "sgl_kernel_matrices": ("gpu.matrices", "run_sgl_kernel", "sgl_kernel"),
}


def main() -> int:
    options = parse_arguments()
    if options.child:
        return run_child(options)
    report: dict[str, Any] = {
        "benchmark": "gpu_smoke",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "commit": commit(),
        "python": platform.python_version(),
        "is_dry": options.dry_run,
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as scratch:
        paths = unpack_wheels(options.wheels, Path(scratch))
        for name in options.parts:
            outcome = run_part(name, options, paths, Path(scratch))
            report["parts"][name] = outcome
            print(summary(name, outcome), flush=True)
            # Written after each part: what is known survives whatever ends this process.
            write(report, options.output)
    print(f"written: {options.output}")
    failed = [name for name, part in report["parts"].items() if part["status"] == "failed"]
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--wheels", type=Path, help="directory of kernel wheels to try")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, comma-separated")
    parser.add_argument("--samples", type=int, help="samples a measurement (20; dry: 2)")
    parser.add_argument("--part-timeout", type=float, default=300.0, help="seconds a part")
    parser.add_argument("--jit-cache", type=Path, help="where libraries keep what they compile")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.samples = options.samples or (2 if options.dry_run else 20)
    if options.output is None:
        folder = Path(tempfile.gettempdir()) if options.dry_run else ROOT / "bench/results"
        options.output = folder / f"gpu-smoke-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    return options


def run_part(
    name: str, options: argparse.Namespace, paths: list[str], scratch: Path
) -> dict[str, Any]:
    """Run one part in a child process; gives its status, its rows, or what went wrong."""
    result = scratch / f"{name}.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    command += ["--output", str(result), "--samples", str(options.samples)]
    if options.dry_run:
        command.append("--dry-run")
    wheels = importlib.import_module("gpu.wheels")
    environment = os.environ | wheels.environment(options.jit_cache or scratch / "jit")
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    began = time.perf_counter()
    outcome: dict[str, Any] = {}
    try:
        child = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=options.part_timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        outcome = {"status": "failed", "error": f"no end after {options.part_timeout:g} s"}
    else:
        if result.is_file():
            outcome = json.loads(result.read_text())
        else:
            tail = (child.stdout + child.stderr).splitlines()[-30:]
            outcome = {"status": "failed", "error": f"exit {child.returncode}", "output": tail}
    return outcome | {"elapsed_s": round(time.perf_counter() - began, 2)}


def run_child(options: argparse.Namespace) -> int:
    """In the child: run the part and write its outcome."""
    import torch
    from gpu.measure import Settings, failure

    if options.dry_run:
        torch.set_num_threads(1)  # tiny tensors, and the machine may be shared
    module, function, package = PARTS[options.child]
    device = torch.device("cpu" if options.dry_run else "cuda")
    settings = Settings(device, options.dry_run, options.samples)
    outcome: dict[str, Any]
    if not options.dry_run and not torch.cuda.is_available():
        outcome = {"status": "failed", "error": "no CUDA device; --dry-run runs on the CPU"}
    elif package is not None and not options.dry_run and not importlib.util.find_spec(package):
        outcome = {"status": "skipped", "error": f"{package} is not here; give --wheels"}
    else:
        try:
            rows = getattr(importlib.import_module(module), function)(settings)
            is_broken = any("error" in row or row.get("ok") is False for row in rows)
            outcome = {"status": "failed" if is_broken else "ok", "rows": rows}
        except Exception as error:
            outcome = {"status": "failed"} | failure(error)
        if package is not None and package in sys.modules:
            outcome["version"] = str(getattr(sys.modules[package], "__version__", "unknown"))
    write(outcome, options.output)
    return 0


def unpack_wheels(wheels: Path | None, scratch: Path) -> list[str]:
    if wheels is None:
        return []
    return list(importlib.import_module("gpu.wheels").unpack(wheels, scratch / "wheels"))


def commit() -> str:
    """The commit of the tree, marked where it has changes; unknown outside of a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def summary(name: str, outcome: dict[str, Any]) -> str:
    """A few lines for people: the status, then the median and the error of each row."""
    lines = [f"{name}: {outcome['status']} in {outcome['elapsed_s']} s"]
    if "error" in outcome:
        lines.append(f"  {outcome['error']}")
    rows = outcome.get("rows", ())
    passed = [row for row in rows if row.get("ok") and "relative_error" not in row]
    if passed:
        lines.append(f"  {len(passed)} of {len(rows)} cases agree")
    for row in rows:
        if row in passed:
            continue
        parts = [f"  {row['name']} {row.get('shape', '')}"]
        seconds = sorted(row.get("graph_seconds") or row.get("seconds") or ())
        if seconds:
            median = seconds[len(seconds) // 2]
            parts.append(f"{median * 1e6:.1f} us")
            if row.get("bytes"):
                parts.append(f"{row['bytes'] / median / 1e9:.0f} GB/s")
            if row.get("flops"):
                parts.append(f"{row['flops'] / median / 1e12:.2f} TFLOP/s")
        if "relative_error" in row:
            parts.append(f"error {row['relative_error']:.1e}")
        if "error" in row:
            parts.append(row["error"][:200])
        lines.append(", ".join(parts))
    return "\n".join(lines)


def write(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
