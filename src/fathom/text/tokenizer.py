"""Text to token ids and back, from a checkpoint's own files.

Control tokens (`<｜User｜>`, `<think>`, ...) are taken out of the library's tokenizer, so that no
text, whoever wrote it, can turn into one; they are put in by id, or by `encode(..., special=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tokenizers

from fathom.errors import RequestError
from fathom.text.tokenizer_files import TokenizerFiles, read_files


class Tokenizer:
    """A byte-level BPE tokenizer. Immutable after `load`, so any number of threads may share it."""

    def __init__(self, files: TokenizerFiles, model: tokenizers.Tokenizer) -> None:
        self._model = model
        self._token_bytes = files.token_bytes
        self._hidden_ids = files.hidden_ids
        self._special_ids = files.special_ids
        self._added_ids = files.special_ids | files.word_ids
        self._words = _any_of(files.word_ids)
        self._words_and_specials = _any_of(self._added_ids)
        self.vocab_size: int = files.vocab_size
        """Number of ids that the model knows: every id is below it; some may stand for no text."""
        self.bos_id: int | None = files.bos_id
        """Opens every prompt; None where the checkpoint has no such token."""
        self.adds_bos: bool = files.adds_bos
        """Whether a plain prompt gets `bos_id` in front."""
        self.eos_ids: tuple[int, ...] = files.eos_ids
        """Tokens that end an answer, the generation config's first."""
        self.config: Mapping[str, object] = files.config
        """tokenizer_config.json, with the chat template where that is a file of its own, and
        `added_tokens_decoder` as tokenizer.json has it."""

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer in a checkpoint's directory.

        Raises: CheckpointError naming the file and what would mend it.
        """
        files = read_files(path)
        return cls(files, files.build_model())

    def require(self, param: str | None = None) -> None:
        """Raises: RequestError where the files are not here (`text.absent`) that `param` needs."""

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Every control token's string and id; text never encodes to one of these ids."""
        return MappingProxyType(self._special_ids)

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out (those declared special in the files)."""
        return self._hidden_ids

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Ids of `text`, without a BOS.

        Control-token strings are ordinary text, unless `special`: only for text that the caller
        wrote. Raises: RequestError for lone surrogates, which no UTF-8 can carry.
        Cost: linear in the text.
        """
        _check_encodable(text)
        pattern = self._words_and_specials if special else self._words
        if pattern is None:
            return tuple(self._model.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        for index, piece in enumerate(pattern.split(text)):
            if index % 2:
                ids.append(self._added_ids[piece])
            elif piece:
                ids.extend(self._model.encode(piece, add_special_tokens=False).ids)
        return tuple(ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises: RequestError for an id outside the vocabulary.
        """
        hidden = self._hidden_ids if skip_special_tokens else frozenset()
        parts = [self.token_bytes(token_id) for token_id in ids if token_id not in hidden]
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; empty for an id that stands for nothing.

        Raises: RequestError for an id outside the vocabulary.
        """
        if 0 <= token_id < len(self._token_bytes):
            return self._token_bytes[token_id]
        self.check_ids((token_id,))
        return b""

    def token_text(self, token_id: int) -> str:
        """A token by itself as text, U+FFFD where its bytes are only part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def check_ids(self, ids: Sequence[int], param: str | None = None) -> None:
        """Raises: RequestError unless every id is in the vocabulary."""
        for position, token_id in enumerate(ids):
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"{param or 'the input'}: a token id is outside the vocabulary",
                    param=param,
                    found=f"{token_id} at position {position}",
                    wanted=f"0 to {self.vocab_size - 1}",
                )


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of `names`, the longest first; its only group makes `split` keep the matches."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            "the text is not valid Unicode",
            found=f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
            wanted="text that UTF-8 can carry",
            fix="send the character itself, or both halves of its \\u escape",
        ) from None
