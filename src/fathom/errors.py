"""Every error that fathom raises on purpose, and what each means to a client and to a shell.

FathomError                      exit 1, HTTP 500
├── ConfigError                  exit 2, HTTP 400   a flag, TOML key or argument is wrong
├── RequestError                 exit 2, HTTP 400   a request field is wrong; `param` names it
│   ├── ContextLengthError       exit 2, HTTP 400   can never fit; says how many tokens would
│   ├── AuthenticationError      exit 1, HTTP 401
│   ├── ForbiddenError           exit 1, HTTP 403
│   ├── NotFoundError            exit 1, HTTP 404
│   ├── MethodError              exit 1, HTTP 405
│   ├── RequestTimeoutError      exit 1, HTTP 408
│   ├── BodyTooLargeError        exit 1, HTTP 413
│   ├── MediaTypeError           exit 1, HTTP 415
│   └── HeadersTooLargeError     exit 1, HTTP 431
├── OverloadedError              exit 1, HTTP 429   queue full; `retry_after_s`
├── UnavailableError             exit 1, HTTP 503   loading, draining, or the engine is gone
├── CheckpointError              exit 3, HTTP 500   files of a model are missing or damaged
├── CapacityError                exit 4, HTTP 500   does not fit this machine
├── EngineError                  exit 6, HTTP 500   a step failed or missed its deadline
└── UpstreamError                exit 7, HTTP 502   the engine behind `fathom proxy` failed
    └── UpstreamTimeoutError     exit 7, HTTP 504   it was silent for too long
"""

from __future__ import annotations


class FathomError(Exception):
    """An error with four parts, so that it can be read, translated and tested.

    `what` names the field or thing, `found` what was there, `wanted` what would be right, `fix`
    the next action. Empty parts are left out of the text.
    """

    exit_code = 1
    http_status = 500
    error_type = "server_error"
    code = "internal_error"

    def __init__(self, what: str, *, found: str = "", wanted: str = "", fix: str = "") -> None:
        self.what, self.found, self.wanted, self.fix = what, found, wanted, fix
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.what]
        if self.found:
            parts.append(f"found: {self.found}")
        if self.wanted:
            parts.append(f"wanted: {self.wanted}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "; ".join(parts)


class ConfigError(FathomError):
    """A setting is wrong; `what` starts with the name of the flag or key."""

    exit_code, http_status = 2, 400
    error_type, code = "invalid_request_error", "invalid_config"


class RequestError(FathomError):
    """A request cannot be honoured as asked; `param` is the path of the field at fault."""

    exit_code, http_status = 2, 400
    error_type, code = "invalid_request_error", "invalid_value"

    def __init__(
        self,
        what: str,
        *,
        param: str | None = None,
        code: str | None = None,
        found: str = "",
        wanted: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(what, found=found, wanted=wanted, fix=fix)
        self.param = param
        if code is not None:
            self.code = code


def not_valid(param: str, *, found: str = "", wanted: str = "") -> RequestError:
    """The error of a field whose value is none that it can have."""
    return RequestError(f"{param} is not valid", param=param, found=found, wanted=wanted)


class ContextLengthError(RequestError):
    """A request that can never fit the context or the page pool."""

    code = "context_length_exceeded"


class AuthenticationError(RequestError):
    """No key, or a key that is not known."""

    exit_code, http_status = 1, 401
    error_type, code = "authentication_error", "invalid_api_key"


class ForbiddenError(RequestError):
    """The server was reached by a name, or from a page, that it does not answer to."""

    exit_code, http_status = 1, 403
    error_type, code = "permission_error", "forbidden"


class NotFoundError(RequestError):
    """No such route, model or item."""

    exit_code, http_status = 1, 404
    error_type, code = "not_found_error", "not_found"


class MethodError(RequestError):
    """The route exists, but not for this HTTP method."""

    exit_code, http_status = 1, 405
    code = "method_not_allowed"


class BodyTooLargeError(RequestError):
    """The body is over the limit; it was not read to its end."""

    exit_code, http_status = 1, 413
    code = "body_too_large"


class RequestTimeoutError(RequestError):
    """The client took too long to send its request."""

    exit_code, http_status = 1, 408
    code = "request_timeout"


class MediaTypeError(RequestError):
    """The body is not declared as JSON."""

    exit_code, http_status = 1, 415
    code = "unsupported_media_type"


class HeadersTooLargeError(RequestError):
    """The request's headers are over the limit."""

    exit_code, http_status = 1, 431
    code = "headers_too_large"


class OverloadedError(FathomError):
    """The queue is full; the client may try again after `retry_after_s` seconds."""

    http_status = 429
    error_type, code = "rate_limit_error", "queue_full"

    def __init__(
        self, what: str, *, retry_after_s: int, found: str = "", wanted: str = "", fix: str = ""
    ) -> None:
        super().__init__(what, found=found, wanted=wanted, fix=fix)
        self.retry_after_s = retry_after_s


class UnavailableError(FathomError):
    """The engine is loading, draining or gone."""

    http_status = 503
    error_type, code = "service_unavailable_error", "unavailable"


class CheckpointError(FathomError):
    """A checkpoint's files are missing, damaged, or not what its config says."""

    exit_code = 3
    code = "bad_checkpoint"


class CapacityError(FathomError):
    """The model or its settings do not fit the machine; `fix` says what would."""

    exit_code = 4
    code = "does_not_fit"


class EngineError(FathomError):
    """A step failed or missed its deadline; the requests in it were answered with this."""

    exit_code = 6
    code = "engine_error"


class UpstreamError(FathomError):
    """The engine behind a proxy refused the proxy, failed, or broke off."""

    exit_code, http_status = 7, 502
    code = "upstream_error"


class UpstreamTimeoutError(UpstreamError):
    """The engine behind a proxy was silent for too long."""

    http_status = 504
    code = "upstream_timeout"
