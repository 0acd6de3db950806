"""Checks grammars in a process that is killed where it takes too long or too much memory.

    AsyncEngine.generate ── Asked ──▶ grammar_process  builds, compiles, computes a first mask
                         ◀── text ──┘                  under limits of time, memory and states

The engine's process compiles the text again, under the same limits of states: an automaton cannot
be sent, and what has compiled here compiles there. Too slow, too large, too deep and too many
states are the request's errors, each by its code; a process that ends in another way is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import msgspec

from fathom.config import child_environment
from fathom.engine.child import CONNECT_TIMEOUT_S
from fathom.engine.messages import ErrorParts, unpack_error
from fathom.errors import EngineError, FathomError, OverloadedError, RequestError
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.recent import Recent

CHECK_TIMEOUT_S = 1.5
# Address space beyond what the process has when it is ready.
MAX_MORE_BYTES = 1 << 30
EXIT_NO_MEMORY = 12
EXIT_WAIT_S = 5.0
MAX_WAITING = 64
_MAX_CACHED = 256
_MAX_CACHED_BYTES = 16 * 2**20  # what was asked, and the texts
LENGTH = struct.Struct(">I")

_log = logging.getLogger(__name__)


class Checked(msgspec.Struct, frozen=True):
    """The answer of the process: the grammar's text, or what is wrong. Neither: it is ready."""

    text: str = ""
    error: ErrorParts | None = None


_checked = msgspec.msgpack.Decoder(Checked)


class GrammarChecker:
    """One process, started when the first grammar comes, and again after it was killed."""

    def __init__(self, directory: Callable[[], Path], max_more_bytes: int = MAX_MORE_BYTES) -> None:
        self._directory, self._max_more_bytes = directory, max_more_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._words: FileIO | None = None  # what the process writes, its last words above all
        self._lock = asyncio.Lock()
        self._num_waiting = 0
        self._known: Recent[bytes, str] = Recent(_MAX_CACHED, _MAX_CACHED_BYTES)

    async def check(self, asked: Asked) -> str:
        """The text of the grammar, which compiles within the limits.

        Raises: RequestError where it does not; OverloadedError where too many wait for this;
        EngineError where the process crashes.
        """
        body = msgspec.msgpack.encode(asked)
        text = self._known.get(body)
        if text is None:
            if self._num_waiting >= MAX_WAITING:
                raise OverloadedError(
                    "too many grammars wait to be compiled", retry_after_s=5, fix="try again later"
                )
            self._num_waiting += 1
            try:
                async with self._lock:
                    text = self._known.get(body) or await self._ask(asked, body)
            finally:
                self._num_waiting -= 1
            self._known.put(body, text, len(body) + len(text))
        return text

    async def _ask(self, asked: Asked, body: bytes) -> str:
        field = asked.field
        process = await self._started()
        if self._words is not None:
            os.ftruncate(self._words.fileno(), 0)  # of what was before: it would add up
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                answer = await _exchange(process, body)
        except TimeoutError:
            await self._kill()
            raise RequestError(
                f"{field} takes too long to compile",
                param=field,
                code="schema_time_limit",
                wanted=f"at most {CHECK_TIMEOUT_S:g} s",
                fix="make it smaller: long alternatives, repetitions and patterns cost most",
            ) from None
        except (asyncio.IncompleteReadError, OSError):
            raise await self._death(process, field) from None
        except BaseException:
            await self._kill()  # a client that left: the answer to come is nobody's
            raise
        if answer.error is not None:
            raise unpack_error(answer.error)
        return answer.text

    async def _death(self, process: asyncio.subprocess.Process, field: str) -> FathomError:
        """What it means that the process has ended while it compiled `field`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), EXIT_WAIT_S)
        code, said = process.returncode, self._last_words()
        await self._kill()
        # The compiler's own allocations abort, after these words.
        is_abort = code == -signal.SIGABRT and "memory allocation of" in said
        if code == EXIT_NO_MEMORY or is_abort:
            return RequestError(
                f"{field} takes too much memory to compile",
                param=field,
                code="schema_memory_limit",
                wanted=f"at most {self._max_more_bytes / 2**20:g} MiB",
                fix="make it smaller",
            )
        if code == -signal.SIGSEGV:  # the compiler follows rules on its stack, which ran out
            _log.warning("grammar process overflowed its stack field=%s", field)
            return RequestError(
                f"{field} nests deeper than the compiler can follow",
                param=field,
                code="schema_depth_limit",
                fix="let fewer rules lead on from one to the other",
            )
        _log.error("grammar process crashed code=%s field=%s said=%r", code, field, said)
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return EngineError(f"the process that compiles {field} crashed", found=how)

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        place = self._words.fileno()
        start = max(0, os.fstat(place).st_size - 2000)
        return os.pread(place, 2000, start).decode("utf-8", "replace")

    async def _started(self) -> asyncio.subprocess.Process:
        """The process, ready. Raises: EngineError where it does not come up."""
        if self._process is not None and self._process.returncode is not None:
            await self._kill()  # it died between two requests, of neither
        if self._process is None:
            self._words = FileIO(os.memfd_create("grammar_process"), "r+")
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "fathom.engine.grammar_process", str(self._directory())),
                str(self._max_more_bytes),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._words.fileno(),
                env=child_environment(),
                start_new_session=True,
                limit=1 << 24,
            )
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await _receive(self._process)
            except (TimeoutError, asyncio.IncompleteReadError) as error:
                said = self._last_words()
                await self._kill()
                what = "the process that checks grammars did not come up"
                raise EngineError(what, found=said) from error
            except BaseException:
                await self._kill()
                raise
        return self._process

    async def close(self) -> None:
        """End the process; idempotent."""
        await self._kill()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if self._words is not None:
            self._words.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())


async def _exchange(process: asyncio.subprocess.Process, body: bytes) -> Checked:
    assert process.stdin is not None
    process.stdin.write(LENGTH.pack(len(body)) + body)
    await process.stdin.drain()
    return await _receive(process)


async def _receive(process: asyncio.subprocess.Process) -> Checked:
    assert process.stdout is not None
    (size,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    return _checked.decode(await process.stdout.readexactly(size))
