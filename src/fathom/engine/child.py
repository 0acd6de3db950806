"""The engine's process as its parent sees it: started, connected to, ended by a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

from fathom.config import child_environment
from fathom.engine.channel import Channel, SocketChannel
from fathom.engine.messages import FromEngine, ToEngine
from fathom.engine.sockets import PrivateListener, check_peer
from fathom.errors import EngineError

# Python starts and imports the engine's client half; a busy disk makes it slow.
CONNECT_TIMEOUT_S = 60.0
# An exit that follows SIGKILL; beyond it the kernel itself is stuck.
REAP_TIMEOUT_S = 10.0
EXIT_ORPHANED = 9

ClientChannel = Channel[ToEngine, FromEngine]


class Child(Protocol):
    """A running engine, as its parent sees it."""

    async def wait(self) -> int:
        """The exit code, once there is one."""
        ...

    async def end(self, grace_s: float) -> int | None:
        """Wait `grace_s` for the exit, then force it; gives the exit code."""
        ...


Launch = Callable[[], Awaitable[tuple[Child, ClientChannel]]]


class EngineProcess:
    """A running child. Made by `start`; `end` must be called."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> tuple[EngineProcess, ClientChannel]:
        """Start the engine's process and wait until it has connected.

        Its command line holds only the socket's name, and its environment no secrets; settings go
        over the socket.
        Raises: EngineError where it ends or stays silent.
        """
        listener = PrivateListener()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-X", "faulthandler", "-m", "fathom.engine.processes", listener.path),
                stdin=asyncio.subprocess.DEVNULL,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent alone
            )
            child = cls(process)
            try:
                connection = await child._accept(listener)
            except BaseException:
                await child.end(0.0)
                raise
        finally:
            listener.close()
        return child, SocketChannel(connection, FromEngine)

    async def _accept(self, listener: PrivateListener) -> socket.socket:
        loop = asyncio.get_running_loop()
        accept = asyncio.ensure_future(loop.sock_accept(listener.socket))
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait(
                (accept, ended), timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not accept.done():
                code = self._process.returncode
                raise EngineError(
                    "the engine's process did not come up",
                    found=f"silence for {CONNECT_TIMEOUT_S:g} s" if code is None else say(code),
                    fix="see its messages above",
                )
            connection, _ = accept.result()
            check_peer(connection)
            return connection
        finally:
            for waiting in (accept, ended):
                waiting.cancel()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, once there is one; negative is the signal that ended it."""
        return await self._process.wait()

    async def end(self, grace_s: float) -> int | None:
        """Wait `grace_s` for the process to exit, then kill it; gives its exit code."""
        for timeout_s in (grace_s, REAP_TIMEOUT_S):
            if self._process.returncode is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), timeout_s)
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGKILL)
        return self._process.returncode


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG = 1)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHANED)


def say(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    hint = " (often: the machine ran out of memory)" if code == -signal.SIGKILL else ""
    return f"ended by {signal.Signals(-code).name}{hint}"
