"""What is simulated, and what a simulation gives, as data."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

from fathom.core.executor import Capacity
from fathom.core.scheduler import SchedulerConfig
from fathom.core.types import CoreStats
from fathom.perf.report import Report

Routing = Literal["least_loaded", "round_robin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is simulated. `capacity` and `scheduler` are those of each of `num_groups` groups.

    `routing` gives a request to the group with the fewest tokens of prompts and answers under way,
    or to each group in turn. A request is `entry_s` on its way before the scheduler has it. A draft
    is right with the chance `draft_acceptance`. Steps go through `num_stages` one after another,
    as many at a time, of different sequences.
    """

    capacity: Capacity
    scheduler: SchedulerConfig
    num_groups: int = 1
    routing: Routing = "least_loaded"
    entry_s: float = 0.0
    draft_acceptance: float = 0.0
    num_stages: int = 1


def _doubles() -> array[float]:
    return array("d")


def _counts() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Timeline:
    """The steps, a column for each fact: when each ran on the device (on the first stage), what was
    in it, and how full queue and pages were when it was planned (`kv_usage` is a share; pages only
    cached are free)."""

    begin_s: array[float] = field(default_factory=_doubles)
    end_s: array[float] = field(default_factory=_doubles)
    num_tokens: array[int] = field(default_factory=_counts)
    prefill_tokens: array[int] = field(default_factory=_counts)
    num_sequences: array[int] = field(default_factory=_counts)
    running: array[int] = field(default_factory=_counts)
    waiting: array[int] = field(default_factory=_counts)
    kv_usage: array[float] = field(default_factory=_doubles)

    def __len__(self) -> int:
        return len(self.begin_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What came of a workload. `stats` are the schedulers' counters, one for each group, and
    `started_s` when each request was first scheduled (None: never)."""

    report: Report
    timeline: Timeline
    stats: tuple[CoreStats, ...]
    started_s: tuple[float | None, ...]
