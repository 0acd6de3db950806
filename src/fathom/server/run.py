"""A server's life: listen, load, answer, drain, exit.

listening (503) ──ready──> answering ──SIGTERM──> draining (503) ──idle or timeout──> exit 0
     └────────────── the engine fails ──────────────┴──> exit with its code
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol

import uvicorn
import uvloop

from fathom.config import EngineConfig
from fathom.engine.async_engine import AsyncEngine
from fathom.engine.timing import Observer
from fathom.errors import FathomError, UnavailableError
from fathom.server.app import Application
from fathom.server.config import ServerConfig
from fathom.server.listen import listen
from fathom.server.protocol import BoundedProtocol
from fathom.server.state import Engine, ServerState
from fathom.spec.plan import DeploymentPlan, RemotePlan
from fathom.text.chat import choose_template

# Answers that are whole still have to reach their clients.
FLUSH_TIMEOUT_S = 5.0
# Load balancers keep idle connections for a minute; ours must outlive theirs.
IDLE_CONNECTION_S = 75

Plan = DeploymentPlan | RemotePlan

_log = logging.getLogger(__name__)


class ManagedEngine(Engine, Protocol):
    """An engine whose life is the server's business too."""

    async def ready(self) -> Plan:
        """Wait until it can answer. Raises: FathomError."""
        ...

    async def ended(self) -> FathomError | None:
        """Wait for its end; gives the reason."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait for what runs; whether it ended in time."""
        ...

    async def close(self) -> None:
        """End at once."""
        ...


StartEngine = Callable[[EngineConfig, Observer], Awaitable[ManagedEngine]]
OnReady = Callable[[str, Any], None]  # a Plan, of the kind that the engine has


async def start_async_engine(config: EngineConfig, observer: Observer) -> ManagedEngine:
    """The real engine, in a process of its own."""
    return await AsyncEngine.start(config, observer=observer)


def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: OnReady,
    start_engine: StartEngine = start_async_engine,
) -> int:
    """Serve until a signal or the engine's end; gives the exit code.

    `on_ready` is told the URL and the plan. Raises: FathomError where it cannot start.
    """
    if server_config.chat_template is not None:
        choose_template({}, server_config.chat_template)  # a wrong name is told before the load
    listener = listen(server_config.host, server_config.port)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(engine_config, server_config, listener, on_ready, start_engine))


async def _serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    listener: socket.socket,
    on_ready: OnReady,
    start_engine: StartEngine,
) -> int:
    state = ServerState(server_config)
    stop, stop_now = _signals()
    engine = await start_engine(engine_config, state.observer)
    state.engine = engine
    server = http_server(Application(state))
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        plan = await _first(engine.ready(), stop.wait(), _broken(answering))
        if isinstance(plan, Plan):
            state.observer.metrics.set_context(plan.max_model_len)
            state.model(engine)
            on_ready(url_of(listener), plan)
            await _first(engine.ended(), stop.wait(), _broken(answering))
        return await _end(state, engine, stop, stop_now, server_config.shutdown_timeout_s)
    finally:
        await engine.close()
        server.should_exit = True
        await asyncio.wait((answering,), timeout=FLUSH_TIMEOUT_S)
        server.force_exit = True
        await asyncio.wait((answering,), timeout=FLUSH_TIMEOUT_S)
        state.close()


async def _broken(answering: asyncio.Task[None]) -> None:
    """Raises what ended the HTTP server, which ends by itself only where it is broken."""
    await asyncio.wait((answering,))
    answering.result()
    raise UnavailableError("the HTTP server ended by itself")


async def _end(
    state: ServerState,
    engine: ManagedEngine,
    stop: asyncio.Event,
    stop_now: asyncio.Event,
    timeout_s: float,
) -> int:
    """Drain where that was asked for. Raises: the error that the engine ended with."""
    if not stop.is_set():
        failure = engine.failure or UnavailableError("the engine ended by itself")
        # Requests under way have been told; give their events a moment to go out.
        await _idle(state, FLUSH_TIMEOUT_S)
        raise failure
    state.is_draining = True
    _log.info("draining active=%d timeout_s=%g", state.num_active, timeout_s)
    if engine.phase == "ready":
        await _first(_drain(state, engine, timeout_s), stop_now.wait())
    return 0


async def _drain(state: ServerState, engine: ManagedEngine, timeout_s: float) -> None:
    if not await engine.drain(timeout_s):
        _log.warning("shutdown timeout reached active=%d", state.num_active)


async def _idle(state: ServerState, timeout_s: float) -> None:
    """Wait until nothing is being answered, at most `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while state.num_active:
                await asyncio.sleep(0.01)


async def _first(*waits: Coroutine[Any, Any, Any]) -> Any:
    """What the first of `waits` to end gives; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first SIGTERM or SIGINT, and by the second."""
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, stop_now


def http_server(app: Application) -> uvicorn.Server:
    """uvicorn, ready to serve `app` on sockets that are given to it."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: draining comes first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket, as a client on this machine writes it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
