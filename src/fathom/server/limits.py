"""How much one request may ask for: a setting each, and errors that name field, limit and flag."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from fathom.config import check_setting, setting
from fathom.core.types import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHARS,
    MAX_LOGPROBS,
    MAX_STOP_STRINGS,
    SamplingParams,
)
from fathom.errors import HeadersTooLargeError, RequestError, not_valid

# Connections are cut at a head of this size, whatever it holds: `protocol.py`.
MAX_HEAD_BYTES = 256 * 1024
MAX_NAME_CHARS = 256


def _limit(default: int, most: int, doc: str, flag: str, unit: str = "") -> Any:
    one = setting(default, f"{doc} At most {most}.", flag, unit=unit)
    return field(default=default, metadata={**one.metadata, "most": most})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request may ask for; more is a 4xx."""

    max_choices: int = _limit(128, MAX_CHOICES, "Most choices of a prompt (n).", "--max-choices")
    max_logprobs: int = _limit(
        20, MAX_LOGPROBS, "Most likely tokens that are scored at a position.", "--max-logprobs"
    )
    max_stop_strings: int = _limit(16, MAX_STOP_STRINGS, "Most stop strings.", "--max-stop-strings")
    max_prompts: int = _limit(256, 65536, "Most prompts of a request.", "--max-prompts")
    max_request_sequences: int = _limit(
        512, 65536, "Most choices of all prompts of a request.", "--max-request-sequences"
    )
    max_messages: int = _limit(
        4096, 2**20, "Most messages, or items, of a conversation.", "--max-messages"
    )
    max_tools: int = _limit(512, 65536, "Most tools of a request.", "--max-tools")
    max_schema_chars: int = _limit(
        512 * 1024,
        MAX_GRAMMAR_CHARS,
        "Longest schema or grammar: an answer's form, or a tool's arguments.",
        "--max-schema-chars",
        unit="characters of JSON",
    )
    max_headers: int = _limit(100, 1000, "Most headers.", "--max-headers")
    max_header_bytes: int = _limit(
        32 * 1024,
        MAX_HEAD_BYTES // 2,
        "Largest headers, all names and values together.",
        "--max-header-bytes",
        unit="bytes",
    )

    def __post_init__(self) -> None:
        for one in fields(RequestLimits):
            value, most = getattr(self, one.name), one.metadata["most"]
            check_setting(type(self), one.name, 1 <= value <= most, value, f"1 to {most}")

    def check(self, name: str, param: str, found: int) -> None:
        """Raises: RequestError for field `param` where `found` is over the limit `name`."""
        limit: int = getattr(self, name)
        if found > limit:
            raise RequestError(
                f"{param} is over the limit",
                param=param,
                code="limit_exceeded",
                found=str(found),
                wanted=f"at most {limit}",
                fix=f"ask for less, or start the server with a larger {self._flag(name)}",
            )

    def check_sampling(self, params: SamplingParams) -> None:
        """Raises: RequestError that names the field of `SamplingParams`, or of the form."""
        for name, param, size in _SAMPLING:
            self.check(name, param, size(params))
        form = params.structured_outputs
        if form is not None:
            self.check("max_schema_chars", form.field, form.num_chars)

    def check_sequences(self, num_prompts: int, num_choices: int, param: str = "prompt") -> None:
        """Raises: RequestError where a request has too many prompts, or choices of them all."""
        self.check("max_prompts", param, num_prompts)
        self.check("max_request_sequences", "n", num_prompts * num_choices)

    def check_headers(self, num_headers: int, num_bytes: int) -> None:
        """Raises: HeadersTooLargeError."""
        for name, found, unit in (
            ("max_headers", num_headers, "headers"),
            ("max_header_bytes", num_bytes, "bytes"),
        ):
            if found > getattr(self, name):
                raise HeadersTooLargeError(
                    "the headers are too large",
                    found=f"{found} {unit}",
                    wanted=f"at most {getattr(self, name)} {unit}",
                    fix=f"send less, or start the server with a larger {self._flag(name)}",
                )

    def _flag(self, name: str) -> str:
        return str(type(self).__dataclass_fields__[name].metadata["flags"][0])


_SAMPLING: tuple[tuple[str, str, Callable[[SamplingParams], int]], ...] = (
    ("max_choices", "n", lambda params: params.n),
    ("max_logprobs", "logprobs", lambda params: params.logprobs or 0),
    ("max_logprobs", "prompt_logprobs", lambda params: params.prompt_logprobs or 0),
    ("max_stop_strings", "stop", lambda params: len(params.stop)),
)


def check_name(param: str, name: str) -> None:
    """Raises: RequestError where a name of the client's own is none for logs and headers."""
    if not (1 <= len(name) <= MAX_NAME_CHARS and name.isprintable()):
        raise not_valid(param, wanted=f"1 to {MAX_NAME_CHARS} printable characters")


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field are about the one that a dialect has in its place."""
    try:
        yield
    except RequestError as error:
        param = error.param or ""
        # Places within a list are those of the one form of a conversation, not the dialect's.
        name = names.get(param, names.get(param.partition("[")[0]))
        if name is None or error.param is None:
            raise
        raise type(error)(
            error.what.replace(error.param, name, 1),
            param=name,
            code=error.code,
            found=error.found,
            wanted=error.wanted,
            fix=error.fix,
        ) from None
