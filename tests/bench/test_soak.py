"""Compares a server after malformed requests of every kind with what it was: as large, and well."""

from __future__ import annotations

import asyncio

from bench import soak
from bench.soak_requests import KINDS, LEAVING
from tests.server.processes import serving

NUM_REQUESTS = 1200
# The allocator and the caches of a young process still settle; a leak of 20 KiB a request shows.
MOST_MIB = NUM_REQUESTS / 2 * 20 / 1024


def test_malformed_requests_leave_a_server_as_it_was() -> None:
    with serving() as server:
        told = asyncio.run(
            soak.soak(server.url, server.process.pid, "fathom-embedded", NUM_REQUESTS, 4)
        )
        assert not told.worst
        assert {kind.__name__ for kind in KINDS} <= set(told.statuses)
        refused = {
            kind for kind, counts in told.statuses.items() if any(s[0] == "4" for s in counts)
        }
        assert refused >= {kind.__name__ for kind in KINDS if kind not in LEAVING}
        assert told.statuses["good"] == {"200": NUM_REQUESTS // 500}
        assert soak.growth_mib(told, 1) < MOST_MIB
        server.until(lambda: server.gauge("num_requests_running") == 0)
