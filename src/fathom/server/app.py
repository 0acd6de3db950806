"""The ASGI application: guard, route table, and an envelope for whatever goes wrong."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router, compile_path

from fathom.errors import EngineError, FathomError, MethodError, NotFoundError, RequestError
from fathom.server.auth import Guard
from fathom.server.envelope import OPENAI
from fathom.server.exchange import Disconnected, Exchange, Receive, Scope, Send
from fathom.server.route import Handler
from fathom.server.routes import ROUTES
from fathom.server.state import ServerState

_log = logging.getLogger(__name__)
_EXCHANGE = "fathom.exchange"


class Application:
    """Pure ASGI, so that nothing stands between a stream and its client."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        open_paths = [route.path for route in ROUTES if route.is_open]
        self._forms = {route.path: route.form for route in ROUTES}
        self._guard = Guard(state.config.api_key, open_paths, state.config)
        self._router = Router(
            [
                Route(route.path, _Endpoint(route.handler, state), methods=[route.method])
                for route in ROUTES
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Connections other than HTTP are left to the server to refuse."""
        if scope["type"] != "http":
            raise ValueError(f"fathom speaks HTTP only, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        exchange.form = self._forms.get(scope["path"], OPENAI)
        scope[_EXCHANGE] = exchange
        scope["app"] = self  # has the router raise instead of answering in plain text
        self.state.num_active += 1
        try:
            await self._answer(exchange, receive, send)
        except Disconnected:
            _log.debug("client gone path=%s", scope["path"])
        finally:
            self.state.num_active -= 1

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        try:
            self._guard.check(exchange)
            await self._router(exchange.scope, receive, send)
        except FathomError as error:
            if error.http_status >= 500 and not self.state.is_draining:
                _log.warning("request failed path=%s error=%s", exchange.scope["path"], error)
            await exchange.fail(error)
        except HTTPException as error:
            await exchange.fail(_routing_error(error, exchange.scope))
        except RecursionError:
            await exchange.fail(RequestError("the request is nested too deeply"))
        except Disconnected:
            raise
        except Exception:
            _log.exception("request failed path=%s", exchange.scope["path"])
            await exchange.fail(
                EngineError("an error inside the server", fix="see the server's log")
            )


class _Endpoint:
    """A handler as an ASGI application, which Starlette's router calls as it is."""

    def __init__(self, handler: Handler, state: ServerState) -> None:
        self._handler, self._state = handler, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Any = scope[_EXCHANGE]
        await self._handler(self._state, exchange)


def _routing_error(error: HTTPException, scope: Scope) -> FathomError:
    path = str(scope["path"])[:200]
    if error.status_code == 405:
        found = [route for route in ROUTES if route.path == scope["path"]]
        found = found or [r for r in ROUTES if compile_path(r.path)[0].match(scope["path"])]
        methods = [route.method for route in found]
        return MethodError(f"{scope['method']} is not for {path}", wanted=", ".join(methods))
    paths = [route.path for route in ROUTES if "{" not in route.path]
    near = get_close_matches(path, paths, n=1)
    fix = f"did you mean {near[0]}?" if near else ""
    return NotFoundError(f"there is no {path}", wanted=", ".join(paths), fix=fix)
