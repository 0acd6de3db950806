"""Compares a server after malformed requests of every kind with what it was: as large, and well."""

from __future__ import annotations

import asyncio

from bench import soak
from bench.soak_requests import LEAVING, MALFORMED
from tests.server.processes import serving

NUM_REQUESTS = 4000
# The allocator and the caches of a young process still settle; a leak of 20 KiB a request shows.
MOST_MIB = NUM_REQUESTS / 2 * 20 / 1024


def test_malformed_requests_leave_a_server_as_it_was() -> None:
    with serving() as server:
        told = asyncio.run(
            soak.soak(server.url, server.process.pid, "fathom-embedded", NUM_REQUESTS, 4)
        )
        assert not told.worst
        assert {kind.__name__ for kind in (*MALFORMED, *LEAVING)} <= set(told.statuses)
        refused = {
            kind for kind, counts in told.statuses.items() if any(s[0] == "4" for s in counts)
        }
        assert refused >= {kind.__name__ for kind in MALFORMED}
        assert told.statuses["good"] == {"200": told.num_sent // 500}
        assert sum(counts.total() for counts in told.statuses.values()) == told.num_sent
        assert soak.growth_mib(told, "api") < MOST_MIB
        server.until(lambda: server.gauge("num_requests_running") == 0)
