"""Times every op on every backend against its roofline.

    python bench/ops.py [--ops linear,experts] [--cases v3_mini] [--backends avx512,reference]
                        [--repeats N] [--threads N] [--quick] [--output FILE]

A backend is an instruction set of the CPU kernels (those that this processor has) or `reference`.
Backends take turns within a case, so that other work on the machine meets all of them. The roofline
is the larger of bytes over the bandwidth of memory and operations over the peak, both measured in
the same run (ops_machine.py says how); a fraction is roofline over median, above 1 where a cache
helps. Weights and cached latents are cold, activations are warm (ops_calls.py). Steal and the load
are kept with the samples: medians of a busy machine tell of the machine, the best sample
(`best_us`) more of the op.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from ops_calls import Calls, make_calls
from ops_machine import Rates, cache_bytes, commit, cpu_ticks, facts, measure_rates

from fathom.ops.api import Backend
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.cases import Case, all_cases
from fathom.ops.reference import ReferenceBackend
from fathom.ops.speed_cases import speed_cases

ISAS = ("amx", "avx512", "avx2")
REFERENCE = "reference"
QUICK_COLD_BYTES = 2**20
QUICK_BUFFER_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Settings:
    """`budget_s`: after the first sample, no more are taken of a case and backend than fit it."""

    backends: tuple[str, ...]
    repeats: int
    threads: int
    budget_s: float
    is_quick: bool

    @property
    def cold_bytes(self) -> int:
        """Between two uses of the same weights."""
        return QUICK_COLD_BYTES if self.is_quick else 2 * cache_bytes()


def available() -> tuple[str, ...]:
    """Instruction sets of this processor, the best first, then the reference."""
    kernels, best = library.load(), library.isa().encode()
    found = [name for name in ISAS if kernels.fathom_choose_isa(name.encode())]
    kernels.fathom_choose_isa(best)
    return (*found, REFERENCE)


def select(name: str) -> None:
    """The kernels of one instruction set from now on."""
    if name != REFERENCE and not library.load().fathom_choose_isa(name.encode()):
        raise SystemExit(f"--backends: no {name} on this processor; there is {available()}")


def rates_of(settings: Settings) -> dict[str, Rates]:
    """By backend; the reference is held against the best instruction set."""
    found: dict[str, Rates] = {}
    repeats, rounds = (2, 1_000) if settings.is_quick else (100, 5_000)
    buffer = QUICK_BUFFER_BYTES if settings.is_quick else 4 * cache_bytes()
    for name in settings.backends:
        if name != REFERENCE:
            select(name)
            found[name] = measure_rates(name, repeats, buffer_bytes=buffer, rounds=rounds)
    if not found or REFERENCE in settings.backends:
        best = available()[0]
        select(best)
        if best not in found:
            found[best] = measure_rates(best, repeats, buffer_bytes=buffer, rounds=rounds)
        found[REFERENCE] = found[best]
    return found


def time_case(
    case: Case, settings: Settings, rates: dict[str, Rates]
) -> Iterator[dict[str, object]]:
    """One result a backend."""
    calls: dict[str, Calls] = {}
    for name in settings.backends:
        if name == REFERENCE or case.dtype == "bfloat16" or case.op in _FLOAT32_OPS:
            select(name)
            backend: Backend = ReferenceBackend() if name == REFERENCE else CpuBackend()
            calls[name] = make_calls(backend, case, cold_bytes=settings.cold_bytes)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    ticks = cpu_ticks()
    for turn in range(settings.repeats + 1):
        for name, call in calls.items():
            if sum(samples[name]) > settings.budget_s:
                continue
            select(name)
            start = time.perf_counter()
            call.next()
            seconds = time.perf_counter() - start
            # The first call finds memory that no thread has touched; it counts if it was slow.
            if turn > 0 or seconds > settings.budget_s:
                samples[name].append(seconds)
    total, stolen = (after - before for after, before in zip(cpu_ticks(), ticks, strict=True))
    for name, times in samples.items():
        found = result(case, name, calls[name], times, rates[name])
        yield {**found, "steal": round(stolen / total, 4) if total else 0.0}


_FLOAT32_OPS = ("mask_logits", "largest", "sample", "token_logprobs", "verify")


def result(
    case: Case, name: str, calls: Calls, times: list[float], rates: Rates
) -> dict[str, object]:
    """What one case took, against what it must."""
    median, least = statistics.median(times), rates.roofline_s(calls.cost)
    return {
        "op": case.op,
        "case": case.name,
        "weights": case.weights,
        "backend": name,
        "median_us": round(1e6 * median, 2),
        "roofline_us": round(1e6 * least, 2),
        "fraction": round(least / median, 4),
        "best_us": round(1e6 * min(times), 2),
        "best_fraction": round(least / min(times), 4),
        "lost_us": round(1e6 * (median - least), 2),
        "copies": calls.copies,
        "cost": asdict(calls.cost),
        "samples_us": [round(1e6 * seconds, 2) for seconds in times],
    }


def chosen_cases(ops: Sequence[str], words: Sequence[str], *, is_quick: bool) -> list[Case]:
    """Of the speed cases, or of the small ones for a quick run, those of `ops` with one of `words`
    in their ids."""
    table = all_cases() if is_quick else speed_cases()
    return [
        case
        for case in table
        if (not ops or case.op in ops)
        and (not words or any(word in case.id for word in words))
        and not case.is_poisoned
    ]


def print_table(results: Sequence[dict[str, object]], rows: int) -> None:
    """The worst first: by time lost."""
    print(f"{'op':<15}{'case':<26}{'weights':<10}{'backend':<10}", end="")
    print(f"{'median us':>12}{'roofline us':>12}{'fraction':>9}{'best':>9}{'lost us':>12}")
    ordered = sorted(results, key=lambda one: -float(str(one["lost_us"])))
    for one in ordered[:rows]:
        print(f"{one['op']:<15}{one['case']:<26}{one['weights']:<10}{one['backend']:<10}", end="")
        print(f"{one['median_us']:>12}{one['roofline_us']:>12}", end="")
        print(f"{one['fraction']:>9}{one['best_fraction']:>9}{one['lost_us']:>12}")


def parse() -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ops", type=words, default=[], help="names, by commas; all")
    parser.add_argument("--cases", type=words, default=[], help="parts of ids, by commas; all")
    parser.add_argument("--backends", type=words, default=[], help="by commas; all there are")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget-s", type=float, default=1.0, help="for one case and backend")
    parser.add_argument("--rows", type=int, default=60, help="of the table that is printed")
    parser.add_argument("--quick", action="store_true", help="small cases, caches warm: for tests")
    parser.add_argument("--output", type=Path, default=Path("bench/results/ops.json"))
    return parser.parse_args()


def main() -> None:
    """Run the cases, print the table and write the file."""
    args = parse()
    backends = tuple(args.backends) or available()
    settings = Settings(backends, args.repeats, args.threads, args.budget_s, args.quick)
    cases = chosen_cases(args.ops, args.cases, is_quick=args.quick)
    if not cases:
        raise SystemExit("--ops, --cases: no such case")
    torch.set_num_threads(args.threads)
    library.start_threads(args.threads)
    library.pin_caller()
    # The rates switch the instruction set, so that the best one is asked for first.
    load, started, machine = os.getloadavg(), datetime.now(UTC), facts()
    rates = rates_of(settings)
    for name, found in rates.items():
        peaks = {kind: f"{rate / 1e9:.0f}" for kind, rate in found.operations_per_s.items()}
        print(f"{name}: {found.bytes_per_s / 1e9:.1f} GB/s, 10^9 operations/s: {peaks}")
    report: dict[str, object] = {
        "machine": machine,
        "commit": commit(),
        "started": started.isoformat(timespec="seconds"),
        "config": asdict(settings),
        "rates": {name: asdict(found) for name, found in rates.items()},
    }
    results: list[dict[str, object]] = []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for case in cases:
        results += time_case(case, settings, rates)
        # After every case, so that a run that is cut short leaves what it has.
        report |= {"load_average": {"before": load, "after": os.getloadavg()}, "results": results}
        args.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print_table(results, args.rows)


if __name__ == "__main__":
    main()
