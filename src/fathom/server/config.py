"""What was asked of the HTTP server: every setting, documented once; flags follow from it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import partial

from fathom.config import check_setting, setting
from fathom.errors import ConfigError
from fathom.server.limits import RequestLimits

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(RequestLimits):
    """Settings of the server, as asked."""

    host: str = setting(
        "127.0.0.1", "Address to listen on; any but loopback needs a key.", "--host"
    )
    port: int = setting(
        8000, "TCP port to listen on; 0 takes a free one.", "--port", wanted="0 to 65535"
    )
    api_key: tuple[str, ...] = setting(
        (),
        "Key that clients must send as 'Authorization: Bearer KEY'; give the flag once for "
        "each key. FATHOM_API_KEY adds one.",
        "--api-key",
    )
    chat_template: str | None = setting(
        None,
        "Name of a built-in chat template, or a file with one in Jinja; the checkpoint's own "
        "where not given.",
        "--chat-template",
    )
    max_body_bytes: int = setting(
        4 * 1024 * 1024, "Largest request body.", "--max-body-bytes", unit="bytes"
    )
    shutdown_timeout_s: float = setting(
        60.0,
        "On SIGTERM, time for running answers to end.",
        "--shutdown-timeout",
        "--drain-timeout",
        unit="seconds",
    )
    keep_alive_interval_s: float = setting(
        15.0,
        "Silence after which a stream sends a comment, so that proxies keep it open.",
        "--sse-keep-alive-interval",
        unit="seconds",
    )
    responses_db: str | None = setting(
        None,
        "SQLite file for answers of /v1/responses that clients come back to; in memory, until "
        "the server ends, where not given.",
        "--responses-db",
    )
    responses_ttl_s: float = setting(
        86400.0, "Time for which these answers are kept.", "--responses-ttl", unit="seconds"
    )
    lenient: bool = setting(
        False,
        "Leave out request fields that are unknown or not supported and list them in the "
        "answer's 'warnings', where they are refused otherwise.",
        "--lenient",
    )
    log_level: str = setting(
        "info", "Least severe message in the log.", "--log-level", wanted=", ".join(LOG_LEVELS)
    )
    enable_log_requests: bool = setting(
        False,
        "Log a line for each answered request: counts and times, never its text.",
        "--enable-log-requests",
        "--log-requests",
    )

    def __post_init__(self) -> None:
        RequestLimits.__post_init__(self)
        _check("port", 0 <= self.port <= 65535, self.port, "0 to 65535")
        _check("max_body_bytes", self.max_body_bytes >= 1024, self.max_body_bytes, "1024 or more")
        _check(
            "shutdown_timeout_s",
            0 <= self.shutdown_timeout_s <= 86400,
            self.shutdown_timeout_s,
            "0 to 86400 seconds",
        )
        _check(
            "keep_alive_interval_s",
            0.05 <= self.keep_alive_interval_s <= 3600,
            self.keep_alive_interval_s,
            "0.05 to 3600 seconds",
        )
        _check("responses_ttl_s", self.responses_ttl_s > 0, self.responses_ttl_s, "over 0 seconds")
        _check("log_level", self.log_level in LOG_LEVELS, self.log_level, ", ".join(LOG_LEVELS))
        for key in self.api_key:
            is_header_safe = bool(key) and key.isascii() and key.isprintable() and " " not in key
            _check("api_key", is_header_safe, "***", "printable ASCII without spaces")
        if not self.api_key and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} is not loopback and there is no key",
                found="everybody who reaches this address could use the model",
                wanted="a key, or a loopback address",
                fix="set FATHOM_API_KEY (or --api-key), or listen on 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. A name other than localhost: no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_check = partial(check_setting, ServerConfig)
