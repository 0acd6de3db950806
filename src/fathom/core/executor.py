"""The executor seam: the only way that the core reaches a device.

One conformance suite (`tests/core/executor_conformance.py`) runs on every implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fathom.core.types import StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an executor can take: pages of KV, tokens a page, tokens a step, plans in flight."""

    num_pages: int
    page_size: int
    max_batch_tokens: int
    max_sequences: int
    depth: int


class Handle(Protocol):
    """A step under way."""

    def wait(self, timeout_s: float) -> StepResult:
        """The step's result; may be called again once it has returned.

        Raises: EngineError where the step failed or did not end within `timeout_s` seconds.
        """
        ...

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        ...


class Executor(Protocol):
    """Runs step plans in the order submitted."""

    capacity: Capacity

    def submit(self, plan: StepPlan) -> Handle:
        """Start a step, without waiting for those before it.

        At most `capacity.depth` plans may be in flight: neither done nor waited for.
        Raises: EngineError over that depth, after `close`, and once a step has failed.
        """
        ...

    def close(self) -> None:
        """Stop and free the device; idempotent. Handles still waited on raise EngineError."""
        ...
