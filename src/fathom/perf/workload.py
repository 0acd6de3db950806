"""Load as data: which requests arrive when, and what they ask. Simulation and measurement share it.

Nothing here reads a clock, a file or a tokenizer: a seed and lists of tokens give a workload, and
the same seed gives the same bytes. `perf.datasets` makes the requests of a workload.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import msgspec

from fathom.errors import ConfigError
from fathom.perf.virtual import Runs

Prompt = tuple[int, ...] | str | Runs
"""What a request asks: token ids, a text, or what stands for ids in a simulation."""
RampUp = Literal["linear", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One request of a workload.

    `at_s`: when it arrives, in seconds after the start; where `after` names another request by its
    index, in seconds after that one's end. `prompt_len` is what the prompt counts in tokens as far
    as it is known, `output_len` the most tokens of the answer.
    """

    prompt: Prompt
    prompt_len: int
    output_len: int
    at_s: float = 0.0
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in the order of their arrival, and how many may be out at once (None: any number).

    Raises: ConfigError for a follow-up of a request that does not come before it.
    """

    requests: tuple[LoadRequest, ...]
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        for index, one in enumerate(self.requests):
            if one.after is not None and not 0 <= one.after < index:
                raise ConfigError(
                    "a follow-up comes before what it follows",
                    found=f"request {index} follows {one.after}",
                )

    @property
    def is_closed(self) -> bool:
        """Whether there is no schedule: the next request is sent when an answer ends.

        A server that stalls is then asked less, so that latencies say nothing about a public that
        does not wait. They are counted from the sending.
        """
        first = (one for one in self.requests if one.after is None)
        return self.max_concurrency is not None and all(one.at_s == 0 for one in first)

    def digest(self) -> str:
        """SHA-256 of the whole workload, in hex: equal digests are equal loads."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def arrive(requests: Sequence[LoadRequest], times_s: Sequence[float]) -> tuple[LoadRequest, ...]:
    """The requests with these arrivals, in the same order; follow-ups keep their own delays."""
    scheduled = iter(times_s)
    return tuple(
        one if one.after is not None else replace(one, at_s=next(scheduled)) for one in requests
    )


def take_turns(
    requests: Sequence[LoadRequest], num_users: int, think_s: float
) -> tuple[LoadRequest, ...]:
    """The requests of a closed loop: each of `num_users` sends every `num_users`-th of them, the
    first at once and each other `think_s` after the answer before.

    Raises: ConfigError where a request is a follow-up already.
    """
    if any(one.after is not None for one in requests):
        raise ConfigError("--think-time", found="turns of conversations", wanted="other requests")
    return tuple(
        replace(one, at_s=0.0)
        if index < num_users
        else replace(one, at_s=think_s, after=index - num_users)
        for index, one in enumerate(requests)
    )


def gamma_arrivals(
    count: int, rate_per_s: float, rng: Random, *, burstiness: float = 1.0
) -> list[float]:
    """Times of `count` arrivals with gamma distributed gaps, in seconds.

    `burstiness` is the shape of the gamma distribution: 1 is a Poisson process, less comes in
    bursts, inf is a steady beat. The times are scaled so that the last is at count / rate: two
    seeds then ask for the same rate. An infinite rate puts all of them at 0.
    Source: vLLM's benchmarks/serve.py, `get_request`: the meaning of burstiness, and the scaling.
    """
    _check_rate("--request-rate", rate_per_s)
    _check_rate("--burstiness", burstiness)
    if math.isinf(rate_per_s):
        return [0.0] * count
    if math.isinf(burstiness):
        gaps = [1.0] * count
    else:
        gaps = [rng.gammavariate(burstiness, 1.0) for _ in range(count)]
    return _cumulative(gaps, total_s=count / rate_per_s)


def burst_arrivals(count: int, rate_per_s: float, rng: Random, *, burst_size: int) -> list[float]:
    """Times of arrivals that come `burst_size` at once; the bursts are a Poisson process, and the
    mean rate of requests is `rate_per_s`."""
    num_bursts = -(-count // burst_size)
    times = gamma_arrivals(num_bursts, rate_per_s / burst_size, rng)
    return [times[index // burst_size] for index in range(count)]


def ramp_arrivals(
    count: int, start_per_s: float, end_per_s: float, rng: Random, *, strategy: RampUp
) -> list[float]:
    """Times of arrivals whose rate goes from `start_per_s` to `end_per_s` over the requests: in
    equal steps (linear), or by equal factors (exponential). Gaps are exponentially distributed."""
    _check_rate("--ramp-up-end-rps", end_per_s)
    if start_per_s < 0 or (strategy == "exponential" and start_per_s == 0):
        raise ConfigError(
            "--ramp-up-start-rps", found=str(start_per_s), wanted="a rate over 0 (linear: 0 too)"
        )
    times: list[float] = []
    now_s = 0.0
    for index in range(count):
        share = (index + 1) / count
        if strategy == "linear":
            rate = start_per_s + (end_per_s - start_per_s) * share
        else:
            rate = start_per_s * (end_per_s / start_per_s) ** share
        now_s += rng.expovariate(rate)
        times.append(now_s)
    return times


def _cumulative(gaps: Sequence[float], *, total_s: float) -> list[float]:
    whole = math.fsum(gaps)
    times: list[float] = []
    so_far = 0.0
    for gap in gaps:
        so_far += gap
        # Where a tiny shape makes every gap vanish, they all come at the end.
        times.append(min(total_s, so_far / whole * total_s) if whole > 0 else total_s)
    return times


def _check_rate(name: str, rate: float) -> None:
    if not rate > 0:
        raise ConfigError(name, found=str(rate), wanted="a number over 0, or inf")
