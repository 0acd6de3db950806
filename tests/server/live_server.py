"""The application on a loopback port, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from fathom.server.app import Application
from fathom.server.config import ServerConfig
from fathom.server.listen import listen
from fathom.server.run import http_server, url_of
from fathom.server.state import ServerState
from tests.server.scripted_engine import ScriptedEngine

WAIT_S = 10.0


class LiveServer:
    """`with LiveServer(...) as server`: `server.url` answers until the block ends."""

    def __init__(self, config: ServerConfig | None = None, **script: Any) -> None:
        self._config = config or ServerConfig(port=0, keep_alive_interval_s=0.2)
        self._script = script
        self._listener = listen("127.0.0.1", 0)
        self.url = url_of(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._up.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.state.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    def application(self) -> Any:
        """What answers."""
        return Application(self.state)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.state = ServerState(self._config)
        self.engine = await self.make_engine()
        self.state.engine = self.engine
        self.server: uvicorn.Server = http_server(self.application())
        self._up.set()
        await self.server.serve(sockets=[self._listener])

    async def make_engine(self) -> Any:
        """What answers."""
        return ScriptedEngine(observer=self.state.observer, **self._script)

    def prompt(self) -> str:
        """The last prompt that reached the engine."""
        return self.engine.tokenizer.decode(self.engine.requests[-1].prompt_ids)

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` gives on the server's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)

    def until(self, is_true: Callable[[], bool]) -> None:
        """Wait, on the server's loop, for something to become true."""

        async def run() -> None:
            async with asyncio.timeout(WAIT_S):
                while not is_true():
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S * 2)
