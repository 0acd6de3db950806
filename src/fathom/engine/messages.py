"""What the API process and the engine process say to each other, and errors as plain data.

All are tagged msgspec structs, so that bytes which are not one of them cannot be decoded.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fathom import errors
from fathom.config import EngineConfig
from fathom.core.types import CoreStats, Request, TokenEvent
from fathom.errors import EngineError, FathomError, OverloadedError, RequestError
from fathom.spec.plan import DeploymentPlan


class ErrorParts(msgspec.Struct, frozen=True, kw_only=True):
    """A FathomError as plain data; `kind` is the name of its class."""

    kind: str
    what: str
    found: str = ""
    wanted: str = ""
    fix: str = ""
    param: str | None = None
    code: str | None = None
    retry_after_s: int = 1


class Configure(msgspec.Struct, frozen=True, tag=True):
    """To the engine, first of all: load this; log messages of `log_level` and above."""

    config: EngineConfig
    log_level: str = "WARNING"


class Add(msgspec.Struct, frozen=True, tag=True):
    """To the engine: run these sequences of one request, all of them or none. `grammar`: what each
    answer must match, as `GrammarEngine.check` gave it; empty for anything."""

    requests: tuple[Request, ...]
    grammar: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the engine: forget these sequences; unknown and ended ones are no error."""

    ids: tuple[str, ...]


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """To the engine: stop after the step that runs, and exit with 0."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """From the engine while it loads: a word for the phase, and a line for people."""

    phase: str
    detail: str = ""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the engine: loaded, with everything that was resolved."""

    plan: DeploymentPlan


class Events(msgspec.Struct, frozen=True, tag=True):
    """From the engine: all news of one step, and the core's gauges after it."""

    events: tuple[TokenEvent, ...]
    stats: CoreStats


class Refused(msgspec.Struct, frozen=True, tag=True):
    """From the engine: none of these sequences was taken."""

    ids: tuple[str, ...]
    error: ErrorParts


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """From the engine, every second: its process runs; the step under way began so long ago."""

    step_age_s: float = 0.0


class Died(msgspec.Struct, frozen=True, tag=True):
    """From the engine, last of all: why it exits."""

    error: ErrorParts


ToEngine = Configure | Add | Cancel | Shutdown
FromEngine = Progress | Ready | Events | Refused | Heartbeat | Died

_KINDS: dict[str, type[FathomError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FathomError)
}


def pack_error(error: BaseException) -> ErrorParts:
    """An error's parts; what is not a FathomError becomes an EngineError that names its type."""
    if not isinstance(error, FathomError):
        return ErrorParts(kind=EngineError.__name__, what=f"{type(error).__name__}: {error}")
    return ErrorParts(
        kind=type(error).__name__,
        what=error.what,
        found=error.found,
        wanted=error.wanted,
        fix=error.fix,
        param=error.param if isinstance(error, RequestError) else None,
        code=error.code if isinstance(error, RequestError) else None,
        retry_after_s=error.retry_after_s if isinstance(error, OverloadedError) else 1,
    )


def unpack_error(parts: ErrorParts) -> FathomError:
    """The error that `pack_error` took apart; an unknown kind comes back as EngineError."""
    kind = _KINDS.get(parts.kind, EngineError)
    more: dict[str, Any] = {}
    if issubclass(kind, RequestError):
        more = {"param": parts.param, "code": parts.code}
    elif issubclass(kind, OverloadedError):
        more = {"retry_after_s": parts.retry_after_s}
    return kind(parts.what, found=parts.found, wanted=parts.wanted, fix=parts.fix, **more)
