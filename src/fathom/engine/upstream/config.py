"""What was asked of a proxy: where the engine is, what it is, and how long it may be silent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fathom.config import check_setting, setting
from fathom.engine.upstream.kinds import KINDS
from fathom.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Settings of the proxy's side towards the engine, as asked."""

    upstream: str = setting(
        "",
        "URL of the OpenAI-compatible server to stand in front of, with or without /v1.",
        "--upstream",
    )
    upstream_kind: str = setting(
        "auto",
        "What the upstream is, which decides what it can be asked; auto: what its /v1/models says.",
        "--upstream-kind",
        wanted=f"auto, {', '.join(KINDS)}",
    )
    model: str | None = setting(
        None,
        "The upstream's name of the model; the first of its /v1/models where not given.",
        "--model",
    )
    served_model_name: tuple[str, ...] = setting(
        (),
        "Names under which clients know it; the upstream's where not given.",
        "--served-model-name",
    )
    tokenizer: str | None = setting(
        None,
        "Directory with the model's tokenizer files. With it, prompts are rendered here and "
        "answers are read token by token; without it, conversations are passed on.",
        "--tokenizer",
    )
    max_model_len: int | None = setting(
        None,
        "Longest sequence, prompt and answer together; what the upstream or config.json beside "
        "the tokenizer says where not given.",
        "--max-model-len",
        unit="tokens",
        wanted="a count such as 4096 or 128K",
    )
    api_key_env: str | None = setting(
        None,
        "Name of the environment variable that holds the key for the upstream.",
        "--api-key-env",
    )
    connect_timeout_s: float = setting(
        10.0, "Longest wait for a connection to the upstream.", "--connect-timeout", unit="seconds"
    )
    silence_timeout_s: float = setting(
        600.0,
        "Longest wait for the next piece of an answer, the first one included.",
        "--silence-timeout",
        unit="seconds",
    )
    request_timeout_s: float = setting(
        3600.0, "Longest answer.", "--request-timeout", unit="seconds"
    )
    loop_guard_tokens: int = setting(
        1024,
        "Tokens of one stretch over and over that end an answer, and the upstream's request "
        "with it (finish_reason 'repetition'); 0 is off. Without --tokenizer four bytes count "
        "as a token.",
        "--loop-guard-tokens",
        unit="tokens",
    )
    loop_guard_repeats: int = setting(
        8, "Times that the stretch has to come, at least.", "--loop-guard-repeats"
    )

    def __post_init__(self) -> None:
        if not self.upstream:
            raise ConfigError("--upstream is needed", wanted="a URL such as http://127.0.0.1:8000")
        kinds = ("auto", *KINDS)
        _check("upstream_kind", self.upstream_kind in kinds, self.upstream_kind, ", ".join(kinds))
        length = self.max_model_len
        _check("max_model_len", length is None or length >= 2, length, "2 tokens or more")
        tokens, repeats = self.loop_guard_tokens, self.loop_guard_repeats
        _check("loop_guard_tokens", tokens >= 0, tokens, "0 or more")
        _check("loop_guard_repeats", repeats >= 2, repeats, "2 or more")
        for name in ("connect_timeout_s", "silence_timeout_s", "request_timeout_s"):
            value = getattr(self, name)
            _check(name, 0 < value <= 86400, value, "over 0, at most 86400 seconds")


_check = partial(check_setting, UpstreamConfig)
