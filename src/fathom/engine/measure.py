"""Times steps through the executor that serves: what `fathom bench calibrate` fits to.

Importing this module imports torch, by way of the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from fathom.core.executor import Executor
from fathom.core.types import Admission, PlanEntry, SamplingParams, StepPlan
from fathom.perf.calibrate import StepCase, TimedStep
from fathom.runtime.build import build_executor
from fathom.spec.plan import DeploymentPlan

# The first steps of a case touch memory and record what later ones replay.
_WARM_STEPS = 2


def time_steps(
    plan: DeploymentPlan,
    cases: Sequence[StepCase],
    *,
    repeats: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[TimedStep]:
    """The quickest of `repeats` runs of each case, of random tokens: other work on the machine only
    ever slows them. What a sequence has behind it is taken as cached, and never computed: its
    values change no time.

    Raises: CheckpointError, CapacityError, ConfigError, EngineError.
    """
    executor = build_executor(plan)
    numbers = iter(range(1, 2**31))
    try:
        return [
            TimedStep(case, _quickest_s(executor, plan, case, repeats, numbers, say))
            for case in cases
        ]
    finally:
        executor.close()


def _quickest_s(
    executor: Executor,
    plan: DeploymentPlan,
    case: StepCase,
    repeats: int,
    numbers: Iterator[int],
    say: Callable[[str], None],
) -> float:
    """Each run is of new sequences, so that all runs are alike."""
    times: list[float] = []
    dropped: tuple[int, ...] = ()
    for _ in range(_WARM_STEPS + repeats):
        entries = tuple(_entries(plan, case, numbers))
        step = StepPlan(next(numbers), entries, dropped)
        times.append(executor.submit(step).wait(plan.step_timeout_s).elapsed_s)
        dropped = tuple(entry.id for entry in entries)
    executor.submit(StepPlan(next(numbers), (), dropped)).wait(plan.step_timeout_s)
    seconds = min(times[_WARM_STEPS:])
    shape = case.shape
    say(
        f"{shape.num_tokens:5d} positions of {shape.num_sequences:3d} sequences, "
        f"{shape.kv_tokens:6d} of context: {seconds * 1000:8.2f} ms"
    )
    return seconds


def _entries(plan: DeploymentPlan, case: StepCase, numbers: Iterator[int]) -> Iterator[PlanEntry]:
    rng, page = Random(0), 0
    for count, context in case.sequences:
        tokens = tuple(rng.choices(range(plan.model.vocab_size), k=context))
        num_pages = -(-context // plan.page_size)
        known = context - count
        sampling = SamplingParams(temperature=0.0, max_tokens=1)
        yield PlanEntry(
            next(numbers),
            known,
            tokens[known:],
            tuple(range(page, page + num_pages)),
            admission=Admission(tokens[:known], context, sampling, 0, ()),
        )
        page += num_pages
