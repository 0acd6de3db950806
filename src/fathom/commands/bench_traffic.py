"""When the requests of `fathom bench serve` come, as settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from fathom.config import check_setting, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """When requests come, and how they are put."""

    request_rate: float = setting(
        math.inf,
        "Requests a second; inf sends all at once, or as --max-concurrency lets them.",
        "--request-rate",
    )
    burstiness: float = setting(
        1.0,
        "Shape of the gamma distributed gaps: 1 is Poisson, less is burstier, inf a beat.",
        "--burstiness",
    )
    burst_size: int = setting(1, "Requests that come at once, at the same rate.", "--burst-size")
    max_concurrency: int | None = setting(
        None,
        "Most requests at once. With a rate, those that wait are late by the schedule; "
        "without, this is a closed loop.",
        "--max-concurrency",
    )
    think_time: float = setting(
        0.0,
        "Each of --max-concurrency users waits this long between an answer and the next request.",
        "--think-time",
        unit="seconds",
    )
    ramp_up_strategy: str | None = setting(
        None,
        "How the rate grows, instead of --request-rate.",
        "--ramp-up-strategy",
        wanted="linear or exponential",
    )
    ramp_up_start_rps: float | None = setting(None, "Rate at the start.", "--ramp-up-start-rps")
    ramp_up_end_rps: float | None = setting(None, "Rate at the end.", "--ramp-up-end-rps")
    self_timed: bool = setting(
        True, "Take arrivals from a timed_trace, not from a rate.", "--self-timed"
    )
    num_warmups: int = setting(
        0,
        "Requests of the same kind that are sent before and not counted.",
        "--num-warmups",
        "--warmup-requests",
    )
    ready_check_timeout_sec: float = setting(
        0.0,
        "Wait this long for the server to answer a request; 0 does not ask.",
        "--ready-check-timeout-sec",
        unit="seconds",
    )
    request_timeout: float = setting(
        600.0,
        "A request that takes longer from its sending has failed.",
        "--request-timeout",
        unit="seconds",
    )

    def __post_init__(self) -> None:
        check = partial(check_setting, TrafficConfig)
        for name in ("request_rate", "burstiness", "request_timeout"):
            value = getattr(self, name)
            check(name, value > 0, value, "a number over 0")
        for name in ("burst_size", "max_concurrency"):
            value = getattr(self, name)
            check(name, value is None or value >= 1, value, "1 or more")
        check("num_warmups", self.num_warmups >= 0, self.num_warmups, "0 or more")
        timeout = self.ready_check_timeout_sec
        check("ready_check_timeout_sec", 0 <= timeout < math.inf, timeout, "0 or more")
        check("burst_size", self.burst_size == 1 or self.burstiness == 1, self.burst_size,
              "1 with --burstiness")  # fmt: skip
        ramp, ends = self.ramp_up_strategy, (self.ramp_up_start_rps, self.ramp_up_end_rps)
        has_gaps = self.burstiness != 1 or self.burst_size != 1
        check("burstiness", not has_gaps or self.request_rate < math.inf, self.burstiness,
              "1, and no --burst-size, unless --request-rate is given")  # fmt: skip
        is_ramp = ramp in ("linear", "exponential") and None not in ends
        check("ramp_up_strategy", is_ramp or (ramp is None and ends == (None, None)), ramp,
              "linear or exponential, with --ramp-up-start-rps and --ramp-up-end-rps")  # fmt: skip
        is_plain = math.isinf(self.request_rate)
        think = self.think_time
        check("think_time", 0 <= think < math.inf, think, "0 or more")
        is_loop = self.max_concurrency is not None and is_plain and ramp is None
        check("think_time", not think or is_loop, think, "--max-concurrency, and no rate")
        check("ramp_up_strategy", ramp is None or is_plain, ramp,
              "no --request-rate beside it")  # fmt: skip
