"""A small client of fathom's own API over the standard library: JSON requests and event streams."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from fathom.errors import ConfigError, FathomError, UnavailableError

# Between two events of a stream the server is silent for 15 s at most.
TIMEOUT_S = 120.0


class Client:
    """Requests to one server. Each takes a connection of its own."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        headers: Mapping[str, str] | None = None,
        verify_tls: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            self._port = parts.port
        except ValueError:
            is_url = False
        if not is_url:
            raise ConfigError("--url", found=url, wanted="a URL such as http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._parts, self._timeout_s = parts, timeout_s
        # The URLs that other clients take end in /v1; ours may too.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._tls = None
        if parts.scheme == "https":
            from fathom.perf.http_stream import client_tls  # asyncio is long to load

            self._tls = client_tls(verify_tls)
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> dict[str, Any]:
        """The JSON at `path`. Raises: FathomError."""
        answer: dict[str, Any] = json.loads(self.get_text(path))
        return answer

    def get_text(self, path: str) -> str:
        """The text at `path`. Raises: FathomError."""
        connection, response = self._ask("GET", path, None)
        try:
            return response.read().decode("utf-8")
        finally:
            connection.close()

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that answers `body`. Raises: FathomError."""
        connection, response = self._ask("POST", path, dict(body))
        try:
            answer: dict[str, Any] = json.loads(response.read())
            return answer
        finally:
            connection.close()

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events that answer `body`. Closing the iterator hangs up, which stops the server.

        Raises: FathomError, also for an error within the stream or a stream that breaks off.
        """
        connection, response = self._ask("POST", path, dict(body))
        try:
            for line in response:
                text = line.decode("utf-8").strip()
                if not text.startswith("data: "):
                    continue
                if text == "data: [DONE]":
                    return
                event = json.loads(text.removeprefix("data: "))
                if "error" in event:
                    raise FathomError(str(event["error"].get("message", "the answer broke off")))
                yield event
            raise UnavailableError("the answer broke off")
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError("the connection broke", found=str(error)) from error
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        host = self._parts.hostname or ""
        if self._tls is None:
            connection = http.client.HTTPConnection(host, self._port, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                host, self._port, timeout=self._timeout_s, context=self._tls
            )
        payload = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._prefix + path, payload, self._headers)
            response = connection.getresponse()
            if response.status == 200:
                return connection, response
            raise _failure(response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UnavailableError(
                f"no answer from {self.url}", found=str(error), fix="start it: fathom serve"
            ) from error
        except BaseException:
            connection.close()
            raise


def _failure(response: http.client.HTTPResponse) -> FathomError:
    """What the server says about its refusal."""
    raw = response.read()
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = raw[:200].decode("utf-8", "replace")
    kind = UnavailableError if response.status == 503 else FathomError
    return kind(f"the server refused (HTTP {response.status}): {message}")
