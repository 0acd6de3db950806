"""Stands in for a tokenizer whose files are not here: a proxy that passes conversations on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from fathom.errors import RequestError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

# What is known of the template of a model behind a proxy: that it is the upstream's.
UPSTREAM_TEMPLATE = ChatTemplate(
    name="upstream", family="unknown", reasons="asked", tool_format="bare"
)


class AbsentTokenizer(Tokenizer):
    """Whatever needs tokens is refused, and the refusal says what would mend it."""

    def __init__(self) -> None:
        self.vocab_size = 2**31
        self.bos_id, self.adds_bos, self.eos_ids = None, False, ()
        self.config: Mapping[str, object] = {}

    def require(self, param: str | None = None) -> NoReturn:
        """Raises: RequestError."""
        raise RequestError(
            f"{param or 'this'} needs the model's tokenizer, which this proxy does not have",
            param=param,
            code="unsupported_parameter",
            fix="start fathom proxy with --tokenizer DIR, or ask with a conversation",
        )

    @property
    def special_ids(self) -> Mapping[str, int]:
        """None are known."""
        return MappingProxyType({})

    @property
    def hidden_ids(self) -> frozenset[int]:
        """None are known."""
        return frozenset()

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Raises: RequestError."""
        self.require()

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Raises: RequestError."""
        self.require()

    def token_bytes(self, token_id: int) -> bytes:
        """Raises: RequestError."""
        self.require()

    def check_ids(self, ids: Sequence[int], param: str | None = None) -> None:
        """Raises: RequestError."""
        self.require()
