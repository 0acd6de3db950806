"""Where a benchmark gets tokens from: a tokenizer's files, or the server that is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fathom.commands.client import Client
from fathom.errors import ConfigError, FathomError
from fathom.perf.datasets import AnyVocabulary, Vocabulary
from fathom.text.tokenizer import Tokenizer

# What the server is asked to split, for tokens that it knows. They are drawn at random: any text
# with a few hundred different words would do.
_SAMPLE = (
    "A server takes requests and answers them one token at a time. Many people ask at once, so it "
    "keeps what it has read, runs several answers together, and frees the memory of those that "
    "have ended. Time to the first token grows with the length of the prompt and with the queue "
    "before it; the time between tokens follows from how much is read for each step. Numbers such "
    "as 12, 305 and 4096, names like Paris, Kyoto or Lagos, code such as `for x in range(10)` "
    "and words in other tongues (maison, Haus, casa, dom) make the sample less even. Rivers run to "
    "the sea, clouds climb over hills, trains leave early, bread is baked before dawn, children "
    "draw red houses with blue doors, engineers measure twice, and nobody knows which letter the "
    "old clock in the hall will stop at when winter comes back from the north with snow and wind."
)


class Tokens(Protocol):
    """Counts texts and knows tokens to make prompts of."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def vocabulary(self) -> AnyVocabulary:
        """Tokens with their texts."""
        ...


class LocalTokens:
    """A tokenizer's files."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Tokens of a text, without a BOS."""
        return len(self._tokenizer.encode(text))

    def vocabulary(self) -> Vocabulary:
        """Every token that is a text by itself and controls nothing."""
        control = set(self._tokenizer.special_ids.values()) | self._tokenizer.hidden_ids
        plain = (one for one in range(self._tokenizer.vocab_size) if one not in control)
        return _vocabulary((one, self._tokenizer.token_bytes(one)) for one in plain)


class ServerTokens:
    """The server's /tokenize and /detokenize, which fathom, vLLM and SGLang have."""

    def __init__(self, client: Client, model: str) -> None:
        self._client, self._model = client, model

    def count(self, text: str) -> int:
        """Tokens of a text, without a BOS. Cost: one request."""
        return len(self._ids(text))

    def vocabulary(self) -> Vocabulary:
        """The tokens of a sample text. Cost: one request for each, once."""
        ids = dict.fromkeys(self._ids(_SAMPLE))
        return _vocabulary((one, self._text(one).encode()) for one in ids)

    def _ids(self, text: str) -> list[int]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return [int(one) for one in self._ask("/tokenize", body)["tokens"]]

    def _text(self, token_id: int) -> str:
        told = self._ask("/detokenize", {"model": self._model, "tokens": [token_id]})
        return str(told.get("prompt", told.get("text", "")))

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._client.post(path, body)
        except FathomError as error:
            raise ConfigError(
                "a tokenizer is needed, and the server does not give one",
                found=str(error),
                fix="--tokenizer DIRECTORY",
            ) from error


def _vocabulary(tokens: Iterable[tuple[int, bytes]]) -> Vocabulary:
    ids: list[int] = []
    texts: list[str] = []
    for token_id, raw in tokens:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip() and "\ufffd" not in text:
            ids.append(token_id)
            texts.append(text)
    if not ids:
        raise ConfigError("the tokenizer has no token that is a text", fix="--tokenizer DIRECTORY")
    return Vocabulary(tuple(ids), tuple(texts))


def tokens_of(tokenizer: str | None, model: str | None, client: Client, served: str) -> Tokens:
    """From --tokenizer, from --model where that is a directory, else from the server."""
    if tokenizer is not None:
        return LocalTokens(Tokenizer.load(Path(tokenizer)))
    if model is not None and Path(model).is_dir():
        return LocalTokens(Tokenizer.load(Path(model)))
    return ServerTokens(client, served)
