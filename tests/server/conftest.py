"""A server with a scripted engine, for the tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live_server import LiveServer


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live
