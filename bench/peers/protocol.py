"""How a driver, in its own process and environment, is asked: one JSON object a line on stdio.

The host sends {"call": name, "arguments": {...}}; the driver answers {"result": ...} or
{"error": text}. Whatever the engine prints goes to the driver's log instead of the pipe.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
_GRACE_S = 10.0


class PeerError(Exception):
    """A peer did not do what it was asked; the text goes into the table."""


class Engine(Protocol):
    """What a driver's engine offers."""

    def facts(self) -> dict[str, Any]:
        """Versions and settings."""

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """One sample of an offline case: {"rate": tokens a second, ...}."""

    def logprobs(self, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
        """For each prompt: the greedy `tokens`, and for each of them the `top` 20 as
        [id, log-probability] pairs, likeliest first."""


def answer_calls(make_engine: Callable[[], Engine]) -> None:
    """The driver's main loop: make the engine, say so, answer until the pipe closes."""
    end_on_signal()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # By lines: a driver that is killed has then said what it had to say.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1)

    def tell(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    try:
        engine = make_engine()
        tell({"result": engine.facts()})
    except Exception as error:
        traceback.print_exc()
        tell({"error": one_line(error)})
        return
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            tell({"result": getattr(engine, asked["call"])(**asked["arguments"])})
        except Exception as error:
            traceback.print_exc()
            tell({"error": one_line(error)})


def end_on_signal() -> None:
    """Have SIGTERM end this process by an exception, so that it ends its own children."""

    def leave(*_: object) -> None:
        raise SystemExit("ended by a signal")

    signal.signal(signal.SIGTERM, leave)


def one_line(error: BaseException) -> str:
    """The error as the table shows it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


class Driver:
    """The host's end of a driver. Every call has a deadline; after a missed one it is ended."""

    def __init__(
        self, command: Sequence[str], log: Path, *, environment: Mapping[str, str], start_s: float
    ) -> None:
        """Start it and wait until its model is loaded. Raises: PeerError."""
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as log_file:
                self.process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    start_new_session=True,
                )
        except OSError as error:
            raise PeerError(f"the driver could not be started: {error}") from error
        self._log = log
        self._unread = b""
        self.facts: dict[str, Any] = self._answer(time.monotonic() + start_s)

    def call(self, name: str, deadline_s: float, **arguments: Any) -> Any:
        """What the driver answers. Raises: PeerError for its error, silence or end."""
        assert self.process.stdin is not None
        message = json.dumps({"call": name, "arguments": arguments}) + "\n"
        try:
            self.process.stdin.write(message.encode())
            self.process.stdin.flush()
        except OSError as error:
            raise PeerError(f"the driver ended: {log_tail(self._log)}") from error
        return self._answer(time.monotonic() + deadline_s)

    def _answer(self, until_s: float) -> Any:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            left_s = until_s - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left_s))
            if not ready:
                self.close()
                raise PeerError("no answer before the deadline; the driver was ended")
            news = os.read(self.process.stdout.fileno(), 1 << 20)
            if not news:
                self.close()
                raise PeerError(f"the driver ended: {log_tail(self._log)}")
            self._unread += news
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End it and its children; idempotent."""
        end_group(self.process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session of its own, with whatever it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait(_GRACE_S)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def log_tail(log: Path, most: int = 300) -> str:
    """The end of a log, in one line."""
    return " ".join(log.read_text(encoding="utf-8", errors="replace")[-most:].split())


def run(
    command: Sequence[object],
    *,
    deadline_s: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command to its end; its output, which also goes to `log`.

    Raises: PeerError where it fails or takes longer than its deadline.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=deadline_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        raise PeerError(f"{Path(words[0]).name} took over {deadline_s:.0f} s") from None
    finally:
        end_group(process)
    with log.open("a", encoding="utf-8") as log_file:
        log_file.write(f"$ {' '.join(words)}\n{output}\n")
    if process.returncode:
        raise PeerError(f"{Path(words[0]).name} failed: {' '.join(output[-300:].split())}")
    return output
