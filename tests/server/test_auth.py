"""Compares what each route answers without a key, with wrong keys and with right ones, by the
route table itself; and what a page of another site gets."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from fathom.errors import ConfigError
from fathom.server.config import ServerConfig
from fathom.server.route import RouteSpec
from fathom.server.routes import ROUTES
from tests.server.live_server import LiveServer

OPEN = {"/livez", "/readyz", "/health", "/"}
KEY = "sk-right"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def locked() -> Iterator[LiveServer]:
    with LiveServer(ServerConfig(port=0, api_key=(KEY, "sk-second"))) as live:
        yield live


@pytest.fixture(scope="module")
def unlocked() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


def path_of(route: RouteSpec) -> str:
    return route.path.replace("{model:path}", "scripted").replace("{response_id}", "none")


def test_open_routes_are_these_and_no_others() -> None:
    assert {route.path for route in ROUTES if route.is_open} == OPEN


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer wrong",
        "Bearer",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        b"Bearer \xff\xe4\xbd\xa0",
        b"\xff",
    ],
)
def test_without_the_key(
    http: httpx.Client, locked: LiveServer, route: RouteSpec, header: str | bytes | None
) -> None:
    path = path_of(route)
    headers = {} if header is None else {"authorization": header}
    response = http.request(route.method, locked.url + path, headers=headers)
    if path in OPEN:
        assert response.status_code == 200
    else:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert "key" in error if isinstance(error, str) else error["type"] == "authentication_error"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("key", [KEY, "sk-second"])
def test_with_a_key(http: httpx.Client, locked: LiveServer, route: RouteSpec, key: str) -> None:
    path = path_of(route)
    headers = {"authorization": f"bearer {key}"}
    response = http.request(route.method, locked.url + path, headers=headers)
    assert response.status_code in (200, 404, 415)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_with_a_key_in_anthropics_header(
    http: httpx.Client, locked: LiveServer, route: RouteSpec
) -> None:
    path = path_of(route)
    headers = {"x-api-key": KEY, "authorization": "Bearer left-over"}
    assert http.request(route.method, locked.url + path, headers=headers).status_code in (
        *(200, 404, 415),
    )
    headers["x-api-key"] = f"{KEY}x"
    status = http.request(route.method, locked.url + path, headers=headers).status_code
    assert status == (200 if path in OPEN else 401)


@pytest.mark.parametrize("path", ["/docs", "/livez/", "/livez/../v1/models", "//livez", "/HEALTH"])
def test_paths_near_open_ones_are_closed(http: httpx.Client, locked: LiveServer, path: str) -> None:
    request = http.build_request("GET", locked.url)
    request.url = request.url.copy_with(raw_path=path.encode())
    assert http.send(request).status_code == 401


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("localhost", None, 200),
        ("[::1]:80", None, 200),
        ("LOCALHOST:1", "http://localhost:1", 200),
        ("127.0.0.1:8000", "http://localhost:3000", 200),
        ("evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost.evil.example:8000", None, 403),
        ("127.0.0.1:8000", "https://evil.example", 403),
        ("127.0.0.1:8000", "null", 403),
        ("127.0.0.1:8000", "http://127.0.0.1.evil.example", 403),
        ("127.0.0.1:8000", "http://[", 403),
    ],
)
def test_without_keys_only_this_machine(
    http: httpx.Client, unlocked: LiveServer, host: str, origin: str | None, status: int
) -> None:
    """DNS rebinding: a foreign page's own name points here, and its requests carry that name."""
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert http.get(f"{unlocked.url}/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_no_key_no_network(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_key=("k",)).host == host


@pytest.mark.parametrize("key", ["", "a b", "schlüssel", "a\nb"])
def test_keys_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(api_key=(key,))
    assert not key or key not in str(caught.value)


def test_each_key_has_a_prefix_cache_of_its_own(http: httpx.Client, locked: LiveServer) -> None:
    """What one key's owner has asked must not make another's answer faster."""
    ask = {"prompt": "Hi", "max_tokens": 2}
    for key, more in ((KEY, {}), (KEY, {}), ("sk-second", {}), (KEY, {"cache_salt": "a"})):
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{locked.url}/v1/completions"
        assert http.post(url, json={**ask, **more}, headers=headers).status_code == 200
    first, again, other, salted = (one.cache_salt for one in locked.engine.requests[-4:])
    assert first == again
    assert len({first, other, salted}) == 3
    assert KEY not in first
