"""Logging: one line an event on stderr, `event key=value`, with no control characters in it."""

from __future__ import annotations

import logging
import re
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
# C0 and C1 but the newline of a traceback: whatever a client or a model sent must not move the
# terminal's cursor or start a line of its own.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class LineFormatter(logging.Formatter):
    """Time, level, logger, message, then the record's extra fields as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        extra = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        line = " ".join([super().formatMessage(record), *extra])
        return escape(line).replace("\n", "\\n")

    def formatException(self, ei: object) -> str:
        """The traceback, its control characters escaped."""
        return escape(super().formatException(ei))  # type: ignore[arg-type]


def escape(text: str) -> str:
    """`text` with control characters, except newlines, as \\x escapes."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def configure(level: str) -> None:
    """Send fathom's log, and errors of the HTTP server under it, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fathom").setLevel(level.upper())
    # Its warnings are of what clients send that is no HTTP: nobody acts on them, anybody can cause
    # them, and the client is told.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
