"""From the settings of a target to where requests go and what they say."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, cast

import msgspec

from fathom.commands.bench_config import BACKENDS
from fathom.commands.bench_target import SamplingConfig, TargetConfig
from fathom.errors import ConfigError
from fathom.perf.http_stream import Origin
from fathom.perf.openai_stream import Asking, Dialect

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def dialect_of(target: TargetConfig) -> Dialect:
    """Completions or chat."""
    return cast(Dialect, BACKENDS[target.backend])


def origin_of(target: TargetConfig) -> Origin:
    """Where the server is. Raises: ConfigError."""
    if target.base_url is None:
        host = f"[{target.host}]" if ":" in target.host else target.host
        return Origin.of(f"http://{host}:{target.port}", "--host")
    # The URLs that other clients take end in /v1; the paths here begin with it.
    return Origin.of(target.base_url.rstrip("/").removesuffix("/v1"))


def client_headers(target: TargetConfig, key: str | None) -> dict[str, str]:
    """Headers of every request."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    pairs = (pair.partition("=") for pair in target.header)
    return headers | {name.strip(): value.strip() for name, _, value in pairs}


def asking_of(
    target: TargetConfig,
    sampling: SamplingConfig,
    model: str,
    timeout_s: float,
    *,
    keeps_text: bool,
) -> Asking:
    """How requests are put. Raises: ConfigError."""
    dialect = dialect_of(target)
    path = target.endpoint or _PATHS[dialect]
    if path.endswith("chat/completions") != (dialect == "chat"):
        raise ConfigError(
            "--endpoint and --backend differ",
            found=f"{path} and {target.backend}",
            fix="--backend openai-chat" if dialect == "completions" else "--backend openai",
        )
    return Asking(
        model=model,
        dialect=dialect,
        path=path,
        timeout_s=timeout_s if math.isfinite(timeout_s) else 10**9,
        options=_options(sampling, dialect),
        request_id_prefix=target.request_id_prefix,
        keeps_text=keeps_text,
    )


def _options(sampling: SamplingConfig, dialect: Dialect) -> dict[str, Any]:
    names = [one.name for one in fields(sampling) if one.name not in ("logprobs", "extra_body")]
    values = {name: getattr(sampling, name) for name in names}
    options = {
        name: value for name, value in values.items() if value is not None and value is not False
    }
    if sampling.logprobs is not None:
        chat = {"logprobs": True, "top_logprobs": sampling.logprobs}
        options |= chat if dialect == "chat" else {"logprobs": sampling.logprobs}
    if sampling.extra_body is not None:
        try:
            options |= msgspec.json.decode(sampling.extra_body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ConfigError("--extra-body", found=str(error), wanted="a JSON object") from error
    return options
