"""Waits, with a deadline, until the server that is to be measured answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

from fathom.commands.bench_target import TargetConfig
from fathom.commands.client import Client
from fathom.errors import ConfigError, UnavailableError
from fathom.perf.drive import WallClock, drive
from fathom.perf.http_stream import HttpClient
from fathom.perf.openai_stream import Asking, OpenAISender
from fathom.perf.workload import LoadRequest, Workload

_RETRY_S = 0.5
_MAY_PASS = ("no connection", "broken stream", "HTTP 503", "HTTP 429")


def served_name(client: Client, target: TargetConfig, timeout_s: float) -> str:
    """The model's name in the API: as given, or the server's first, which is asked for
    until `timeout_s` have passed. Raises: FathomError."""
    named = target.served_model_name or target.model
    if named is not None and not timeout_s:
        return named
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            models = client.get("/v1/models").get("data") or []
            break
        except UnavailableError:
            if time.monotonic() + _RETRY_S > deadline_s:
                raise
            time.sleep(_RETRY_S)
    if named is not None:
        return named
    if not models:
        raise ConfigError("--model", found=f"no model at {client.url}", fix="--model NAME")
    return str(models[0]["id"])


async def until_it_answers(
    http: HttpClient, asking: Asking, request: LoadRequest, timeout_s: float, stop: asyncio.Event
) -> None:
    """Ask for one token until there is one, or until `stop` is set. Raises: UnavailableError."""
    clock = WallClock()
    deadline_s = clock.now_s() + timeout_s
    probe = Workload(requests=(replace(request, output_len=1),))
    while not stop.is_set():
        rest_s = max(0.1, deadline_s - clock.now_s())
        sender = OpenAISender(http, replace(asking, timeout_s=rest_s), clock.now_s)
        report = await drive(probe, sender, clock, stop=stop)
        if report.complete or report.is_interrupted:
            return
        [(kind, (_, message))] = report.errors().items()
        may_pass = kind in _MAY_PASS
        if not may_pass or clock.now_s() + _RETRY_S > deadline_s:
            found = f"{kind}: {message}"
            if may_pass:
                what = f"the server was not ready within {timeout_s:g} s"
                raise UnavailableError(what, found=found, fix="--ready-check-timeout-sec")
            raise UnavailableError("the server does not answer as it should", found=found)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _RETRY_S)
