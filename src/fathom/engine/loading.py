"""From settings to a core that steps: open, resolve, build. The one place where both meet.

Importing this module imports torch, so only the engine's process and `LLM` do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fathom.config import EngineConfig
from fathom.core.loop import EngineCore
from fathom.core.loop_guard import LoopLimits
from fathom.core.scheduler import SchedulerConfig
from fathom.engine.text_side import model_directory
from fathom.perf.resolve import resolve
from fathom.runtime.build import build_executor
from fathom.runtime.device import probe
from fathom.spec.plan import DeploymentPlan
from fathom.weights.open import open_checkpoint

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A core that is ready to step, and what was resolved for it."""

    core: EngineCore
    plan: DeploymentPlan


@contextmanager
def load(config: EngineConfig, report: Callable[[str, str], None]) -> Iterator[Loaded]:
    """Load a deployment; leaving the context frees the device.

    `report` is told each phase and a line about it.
    Raises: CheckpointError, CapacityError, ConfigError, EngineError.
    """
    directory = model_directory(config)
    report("opening", str(directory))
    checkpoint = open_checkpoint(directory)
    report("resolving", "what fits this machine")
    plan = resolve(config, checkpoint.spec, probe(config.device), str(directory))
    for decision in plan.decisions:
        _log.debug("decision %s=%s (%s)", decision.field, decision.value, decision.reason)
    report("loading", "weights and KV cache")
    executor = build_executor(plan)
    try:
        yield Loaded(
            EngineCore(executor, scheduler_config(plan), step_timeout_s=plan.step_timeout_s), plan
        )
    finally:
        executor.close()


def scheduler_config(plan: DeploymentPlan) -> SchedulerConfig:
    """The scheduler's part of a plan."""
    return SchedulerConfig(
        max_model_len=plan.max_model_len,
        max_queued=plan.max_queued,
        num_drafts=plan.num_drafts,
        run_ahead=bool(plan.run_ahead),
        prefix_cache=plan.prefix_cache,
        loops=LoopLimits(plan.loop_guard_tokens, plan.loop_guard_repeats),
    )
