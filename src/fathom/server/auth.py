"""Who may ask: keys, and without keys, only this machine's own programs and pages."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from fathom.errors import AuthenticationError, ForbiddenError
from fathom.server.exchange import Exchange
from fathom.server.limits import RequestLimits

_LOOPBACK = re.compile(r"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")


class Guard:
    """Checks each request before it is routed. All paths but `open_paths` need a key, where
    there are keys; without keys every path needs a loopback Host and no foreign Origin."""

    def __init__(
        self,
        keys: Iterable[str],
        open_paths: Iterable[str],
        limits: RequestLimits,
    ) -> None:
        # Hashes have one length and any header can be hashed, so comparing takes equally long
        # for every wrong key and fails for none.
        self._digests = tuple(_digest(key) for key in keys)
        self._open_paths = frozenset(open_paths)
        self._limits = limits

    def check(self, exchange: Exchange) -> None:
        """Raises: AuthenticationError, ForbiddenError or HeadersTooLargeError."""
        headers = exchange.scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        self._limits.check_headers(len(headers), size)
        if not self._digests:
            self._check_local(exchange)
        elif exchange.scope["path"] not in self._open_paths:
            self._check_key(exchange)

    def _check_key(self, exchange: Exchange) -> None:
        scheme, _, key = exchange.header(b"authorization").partition(" ")
        other = exchange.header(b"x-api-key")
        # Clients of Anthropic's API may send both, one of them a leftover of another server.
        for given in (_digest(key.strip() if scheme.lower() == "bearer" else ""), _digest(other)):
            matches = [secrets.compare_digest(given, digest) for digest in self._digests]
            if any(matches):
                exchange.tenant = given.hex()[:16]
                return
        raise AuthenticationError(
            "the API key is wrong" if scheme or other else "an API key is needed",
            wanted="the header Authorization: Bearer KEY, or x-api-key: KEY",
        )

    def _check_local(self, exchange: Exchange) -> None:
        """A page of another site can send requests here, and can make its own name point here
        (DNS rebinding). Its Origin or its Host gives it away."""
        host = exchange.header(b"host").lower()
        if not _LOOPBACK.fullmatch(host):
            raise ForbiddenError(
                "without a key the server answers to loopback names only",
                found=f"Host: {host[:100]}",
                wanted="localhost or a loopback address",
                fix="start the server with --api-key",
            )
        origin = exchange.header(b"origin").lower()
        if origin and origin != f"{exchange.scope['scheme']}://{host}" and not _is_local(origin):
            raise ForbiddenError(
                "without a key the server answers no pages of other sites",
                found=f"Origin: {origin[:100]}",
                fix="start the server with --api-key",
            )


def _is_local(origin: str) -> bool:
    """Whether a page was served by this machine's loopback, whatever its port."""
    try:
        return _LOOPBACK.fullmatch(urlsplit(origin).netloc) is not None
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
