"""What a run of a workload measured: a record for each request, and the numbers that follow.

Definitions, times in seconds (n is the number of output tokens that the server counts):

    e2el  end - start          ttft  first token - start       tpot  (end - first token) / (n - 1)
    itl   gaps between the pieces of a stream, of all requests together

`start` is when the request was due (`due_s`), whatever kept the client from sending it, so that a
server that stalls cannot hide the requests that it kept waiting; in a closed loop, which has no
schedule, it is the sending. `*_from_send` counts from the sending always. Simulations give the
same records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as it went. Times in seconds after the start of the run.

    `times_s` are the arrivals of the pieces that carried something, the first being the first
    token's. `error_kind` is empty for an answer that came whole.
    """

    index: int
    due_s: float
    sent_s: float
    end_s: float
    times_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    error_kind: str = ""
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the answer came whole."""
        return not self.error_kind


def _ttft(one: RequestRecord) -> float | None:
    return one.times_s[0] - one.due_s if one.times_s else None


def _tpot(one: RequestRecord) -> float | None:
    if one.output_tokens < 2 or not one.times_s:
        return None
    return (one.end_s - one.times_s[0]) / (one.output_tokens - 1)


def _ttft_from_send(one: RequestRecord) -> float | None:
    return one.times_s[0] - one.sent_s if one.times_s else None


Measure = Callable[[RequestRecord], float | None]
PER_REQUEST: MappingProxyType[str, Measure] = MappingProxyType(
    {
        "ttft": _ttft,
        "tpot": _tpot,
        "e2el": lambda one: one.end_s - one.due_s,
        "schedule_delay": lambda one: one.sent_s - one.due_s,
        "ttft_from_send": _ttft_from_send,
        "e2el_from_send": lambda one: one.end_s - one.sent_s,
        # vLLM's names for two of these.
        "client_queue_time": lambda one: one.sent_s - one.due_s,
        "e2el_including_client_queue": lambda one: one.end_s - one.due_s,
    }
)
METRICS = (*PER_REQUEST, "itl")
"""Names of all that is measured in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run: its records and how long it took from the start to the last end.

    `is_closed` says that there was no schedule; `is_interrupted` that somebody ended it early;
    `began_s` is the start on the clock that measured.
    """

    records: tuple[RequestRecord, ...]
    duration_s: float
    began_s: float = 0.0
    is_closed: bool = False
    is_interrupted: bool = False

    @property
    def complete(self) -> list[RequestRecord]:
        """Requests that were answered whole; only they are measured."""
        return [one for one in self.records if one.is_complete]

    def samples_s(self, metric: str) -> list[float]:
        """Every value of one of `METRICS`, in seconds. Raises: KeyError for another name."""
        if metric == "itl":
            return [gap for one in self.complete for gap in gaps_s(one)]
        measure = PER_REQUEST[metric]
        return [value for one in self.complete if (value := measure(one)) is not None]

    def num_good(self, limits_s: dict[str, float]) -> int:
        """Requests within every limit; one without a value of a metric meets that limit.

        Source: DistServe (Zhong et al., 2024), section 2, and vLLM's reading of it.
        """
        return sum(
            all((PER_REQUEST[name](one) or 0.0) <= limit for name, limit in limits_s.items())
            for one in self.complete
        )

    def peak_concurrency(self) -> int:
        """Most requests that were out at once, failed ones too."""
        events = sorted(
            event
            for one in self.records
            for event in ((one.sent_s, 1), (one.end_s, -1))
            if one.end_s > one.sent_s
        )
        peak = now = 0
        for _, step in events:  # at equal times -1 sorts first: intervals are half open
            now += step
            peak = max(peak, now)
        return peak

    def peak_output_tokens_per_s(self) -> float:
        """Output tokens in the fullest second of the run; those of one answer are counted as if
        its pieces carried equally many."""
        tokens: dict[int, float] = {}
        for one in self.complete:
            if one.times_s:
                share = one.output_tokens / len(one.times_s)
                buckets = Counter(math.floor(time_s) for time_s in one.times_s)
                for second, count in buckets.items():
                    tokens[second] = tokens.get(second, 0.0) + share * count
        return max(tokens.values(), default=0.0)

    def errors(self) -> dict[str, tuple[int, str]]:
        """How many requests failed for each kind of reason, and the first message of each."""
        counted: dict[str, tuple[int, str]] = {}
        for one in self.records:
            if one.error_kind:
                count, message = counted.get(one.error_kind, (0, one.error))
                counted[one.error_kind] = count + 1, message
        return counted


def gaps_s(one: RequestRecord) -> list[float]:
    """Seconds between the pieces of a stream."""
    return [after - before for before, after in zip(one.times_s, one.times_s[1:], strict=False)]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the sorted samples lie, interpolated linearly between
    neighbours; 0 where there are none. Source: Hyndman and Fan (1996), definition 7."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * percent / 100.0
    low = min(math.floor(position), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    share = position - low
    return ordered[low] * (1.0 - share) + ordered[high] * share


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Mean, median, standard deviation (of the samples themselves) and percentiles."""

    count: int
    mean: float
    median: float
    std: float
    percentiles: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, samples: Iterable[float], percents: Sequence[float]) -> Statistics:
        """The statistics of samples; all 0 where there are none."""
        ordered = sorted(samples)
        return cls(
            count=len(ordered),
            mean=fmean(ordered) if ordered else 0.0,
            median=percentile(ordered, 50.0),
            std=pstdev(ordered) if ordered else 0.0,
            percentiles=tuple((percent, percentile(ordered, percent)) for percent in percents),
        )
