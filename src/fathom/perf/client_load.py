"""How busy the measuring process itself is: its share of a core, and how late its loop runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fathom.perf.report import percentile

_TICK_S = 0.05
# Above these the client may be what is measured: queueing in a process that is busy for seven
# tenths of the time more than triples its own service time, and ITLs are of the order of 10 ms.
MAX_CPU_SHARE, MAX_LAG_S = 0.7, 0.1
# What a run takes to begin and to end says nothing yet.
MIN_CPU_S = 0.5


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """CPU seconds and share of this process, and how late a regular tick of its loop came."""

    cpu_s: float
    cpu_share: float
    p99_lag_s: float
    max_lag_s: float

    @property
    def is_bound(self) -> bool:
        """Whether the client may be what was measured."""
        is_busy = self.cpu_share > MAX_CPU_SHARE and self.cpu_s > MIN_CPU_S
        return is_busy or self.p99_lag_s > MAX_LAG_S

    def told(self, num_tokens: int) -> dict[str, Any]:
        """For the result file."""
        return {
            "client_cpu_share": self.cpu_share,
            "client_cpu_us_per_output_token": self.cpu_s / max(1, num_tokens) * 1e6,
            "client_p99_lag_ms": self.p99_lag_s * 1000.0,
            "client_max_lag_ms": self.max_lag_s * 1000.0,
            "is_client_bound": self.is_bound,
        }


class ClientLoadMeter:
    """`async with ClientLoadMeter(now_s) as meter`: afterwards `meter.load`."""

    load: ClientLoad

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._lags_s: list[float] = []

    async def __aenter__(self) -> ClientLoadMeter:
        self._began_s, self._began_cpu_s = self._now_s(), time.process_time()
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def _tick(self) -> None:
        while True:
            due_s = self._now_s() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lags_s.append(max(0.0, self._now_s() - due_s))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        await asyncio.wait((self._ticking,))
        cpu_s = time.process_time() - self._began_cpu_s
        lags_s = sorted(self._lags_s)
        self.load = ClientLoad(
            cpu_s=cpu_s,
            cpu_share=cpu_s / max(1e-9, self._now_s() - self._began_s),
            p99_lag_s=percentile(lags_s, 99.0),
            max_lag_s=lags_s[-1] if lags_s else 0.0,
        )
