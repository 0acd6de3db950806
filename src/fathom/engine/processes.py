"""The engine's process: `python -m fathom.engine.processes SOCKET`, started by `AsyncEngine`.

It connects to the socket, is told its settings, loads, and steps until it is told to stop or its
parent is gone. SIGTERM and SIGINT are the parent's business: it drains, then says Shutdown.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from fathom import log
from fathom.core.constraint import Constraint
from fathom.core.loop import EngineCore
from fathom.core.types import CoreStats, TokenEvent
from fathom.engine.channel import Channel, ChannelClosed, SocketChannel
from fathom.engine.child import EXIT_ORPHANED, die_with_parent
from fathom.engine.constraints import ConstraintMaker
from fathom.engine.messages import (
    Add,
    Cancel,
    Configure,
    Died,
    Events,
    FromEngine,
    Heartbeat,
    Progress,
    Ready,
    Refused,
    Shutdown,
    ToEngine,
    pack_error,
)
from fathom.engine.sockets import connect
from fathom.engine.text_side import load_text
from fathom.errors import EngineError, FathomError

HEARTBEAT_S = 0.5
CONNECT_TIMEOUT_S = 30.0
# How long an idle engine sleeps on its socket before it looks around; messages wake it at once.
IDLE_WAIT_S = 60.0
# How often an engine without other work looks whether a grammar is compiled.
COMPILE_POLL_S = 0.002

_log = logging.getLogger(__name__)

EngineChannel = Channel[FromEngine, ToEngine]


class EngineServer:
    """Runs a core for whoever is at the other end of a channel, until told to stop."""

    def __init__(
        self,
        core: EngineCore,
        channel: EngineChannel,
        clock: Callable[[], float] = time.monotonic,
        constraints: ConstraintMaker | None = None,
    ) -> None:
        self._core, self._channel, self._clock = core, channel, clock
        self._constraints = constraints
        self._is_stopping = False
        self._told = CoreStats()
        self.step_began_s: float | None = None
        """When the step under way began, None between steps; read by the heartbeat's thread."""

    def run(self) -> None:
        """Take messages and step; returns after Shutdown.

        Raises: ChannelClosed when the client is gone; EngineError once a step has failed, after
        the requests in it have been answered.
        """
        while not self._is_stopping:
            message = self._channel.receive(self._wait_s())
            while message is not None:
                self._handle(message)
                message = self._channel.receive(0.0)
            for add, made in self._constraints.ready() if self._constraints else ():
                self._add(add, made)
            self._send(self._step() if self._core.has_work else [])
            if self._core.error:
                raise EngineError("a step failed", found=self._core.error)
        self._send(self._core.fail_all("the engine was told to stop"))

    def _wait_s(self) -> float:
        if self._core.has_work:
            return 0.0
        is_making = self._constraints is not None and self._constraints.is_busy
        return COMPILE_POLL_S if is_making else IDLE_WAIT_S

    def _step(self) -> list[TokenEvent]:
        now = self._clock()
        self.step_began_s = now
        try:
            return self._core.step(now)
        finally:
            self.step_began_s = None

    def _send(self, events: list[TokenEvent]) -> None:
        """One message a step, and none where nothing changed."""
        stats = self._core.stats()
        if events or stats != self._told:
            self._told = stats
            self._channel.send(Events(tuple(events), stats))

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Add):
            if message.grammar and self._constraints is not None:
                self._constraints.make(message)
            else:
                self._add(message, [None] * len(message.requests))
        elif isinstance(message, Cancel):
            if self._constraints is not None:
                self._constraints.cancel(message.ids)
            for request_id in message.ids:
                self._core.cancel(request_id)
        elif isinstance(message, Shutdown):
            self._is_stopping = True
        else:
            raise EngineError("the engine has its settings already", found="Configure again")

    def _add(self, message: Add, made: Sequence[Constraint | None] | FathomError) -> None:
        """All sequences or none, so that a client hears of a refusal before the first token."""
        now = self._clock()
        added: list[str] = []
        try:
            if isinstance(made, FathomError):
                raise made
            for request, constraint in zip(message.requests, made, strict=True):
                self._core.add(request, now, constraint)
                added.append(request.id)
        except FathomError as error:
            for request_id in added:
                self._core.cancel(request_id)
            ids = tuple(request.id for request in message.requests)
            self._channel.send(Refused(ids, pack_error(error)))


class HeartbeatThread:
    """Says every HEARTBEAT_S that the process runs, while loading and in long steps too.

    Where nobody listens any more, it ends the process: the main thread may be deep in a step.
    """

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel
        self._stop = threading.Event()
        self.server: EngineServer | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> HeartbeatThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HEARTBEAT_S)

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            began_s = self.server.step_began_s if self.server else None
            age_s = time.monotonic() - began_s if began_s is not None else 0.0
            try:
                self._channel.send(Heartbeat(age_s))
            except ChannelClosed:
                if not self._stop.is_set():
                    os._exit(EXIT_ORPHANED)


def serve(channel: EngineChannel) -> int:
    """Load what the first message asks for and serve it; gives the exit code."""
    try:
        with HeartbeatThread(channel) as heartbeat:
            try:
                _load_and_run(channel, heartbeat)
            except FathomError as error:
                channel.send(Died(pack_error(error)))
                return error.exit_code
            except ChannelClosed:
                raise
            except Exception as error:
                _log.exception("engine failed")
                channel.send(Died(pack_error(error)))
                return EngineError.exit_code
            return 0
    except ChannelClosed:
        return EXIT_ORPHANED


def _load_and_run(channel: EngineChannel, heartbeat: HeartbeatThread) -> None:
    message = channel.receive(CONNECT_TIMEOUT_S)
    if not isinstance(message, Configure):
        raise EngineError("the engine was given no settings", found=repr(message))
    log.configure(message.log_level)
    channel.send(Progress("importing", "torch"))
    # Here and not above: it takes seconds, in which the parent can hear the heartbeat already.
    from fathom.engine.loading import load

    with load(message.config, lambda *news: channel.send(Progress(*news))) as loaded:
        constraints = ConstraintMaker(lambda: load_text(message.config).tokenizer)
        heartbeat.server = EngineServer(loaded.core, channel, constraints=constraints)
        channel.send(Ready(loaded.plan))
        heartbeat.server.run()


def main(arguments: list[str]) -> int:
    """Serve over the socket named by the only argument; gives the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # ignored by the ranks as well, which inherit it
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        connection = connect(arguments[0], CONNECT_TIMEOUT_S)
    except OSError:
        return EXIT_ORPHANED  # the parent has given up already
    channel: SocketChannel[FromEngine, ToEngine] = SocketChannel(connection, ToEngine)
    try:
        return serve(channel)
    finally:
        channel.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
