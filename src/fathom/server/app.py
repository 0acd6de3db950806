"""The ASGI application: guard, route table, and an envelope for whatever goes wrong."""

from __future__ import annotations

import logging
from difflib import get_close_matches

from fathom.errors import EngineError, FathomError, MethodError, NotFoundError, RequestError
from fathom.server.auth import Guard
from fathom.server.exchange import Disconnected, Exchange, Receive, Scope, Send
from fathom.server.route import RouteSpec
from fathom.server.routes import ROUTES, form_of
from fathom.server.state import ServerState

_log = logging.getLogger(__name__)


class Application:
    """Pure ASGI, so that nothing stands between a stream and its client."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        open_paths = [route.path for route in ROUTES if route.is_open]
        self._guard = Guard(state.config.api_key, open_paths, state.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Connections other than HTTP are left to the server to refuse."""
        if scope["type"] != "http":
            raise ValueError(f"fathom speaks HTTP only, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        exchange.form = form_of(scope["path"])
        self.state.num_active += 1
        try:
            await self._answer(exchange)
        except Disconnected:
            _log.debug("client gone path=%s", scope["path"])
        finally:
            self.state.num_active -= 1

    async def _answer(self, exchange: Exchange) -> None:
        try:
            self._guard.check(exchange)
            await _route(exchange.scope).handler(self.state, exchange)
        except FathomError as error:
            if error.http_status >= 500 and not self.state.is_draining:
                _log.warning("request failed path=%s error=%s", exchange.scope["path"], error)
            await exchange.fail(error)
        except RecursionError:
            await exchange.fail(RequestError("the request is nested too deeply"))
        except Disconnected:
            raise
        except Exception:
            _log.exception("request failed path=%s", exchange.scope["path"])
            await exchange.fail(
                EngineError("an error inside the server", fix="see the server's log")
            )


def _route(scope: Scope) -> RouteSpec:
    """The row that answers; what its path has for parameters is in the scope then.

    Raises: MethodError, NotFoundError.
    """
    others: list[RouteSpec] = []
    method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the same without a body
    for route in ROUTES:
        params = route.match(scope["path"])
        if params is not None and route.method == method:
            scope["path_params"] = params
            return route
        if params is not None:
            others.append(route)
    path = str(scope["path"])[:200]
    if others:
        exact = [route for route in others if route.path == scope["path"]]
        methods = [route.method for route in exact or others]
        raise MethodError(f"{scope['method']} is not for {path}", wanted=", ".join(methods))
    paths = [route.path for route in ROUTES if "{" not in route.path]
    near = get_close_matches(path, paths, n=1)
    fix = f"did you mean {near[0]}?" if near else ""
    raise NotFoundError(f"there is no {path}", wanted=", ".join(paths), fix=fix)
