"""Token ids to text as they come: whole characters only, stop strings, markers by id."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from fathom.text.markers import Piece
from fathom.text.scan import Scanner
from fathom.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer. The pieces together equal `Tokenizer.decode` of all its ids.

    `stop` strings end the answer; they may span tokens, so text that may begin one is held back,
    and so are the bytes of an unfinished character. The first `min_tokens` tokens are not searched.
    `markers` are ids that come back as marker pieces; text does not join across them. A stop string
    that is one of them ends the answer with it.
    Cost: amortised constant per byte; the answer so far is never decoded again.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        markers: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.hidden_ids if skip_special_tokens else frozenset()
        self._scanner = Scanner(stop)
        self._stop = frozenset(stop)
        self._includes_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._markers = dict(markers or {})
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.num_tokens = 0
        """Tokens that belong to the answer, the one that completed a stop string included."""
        self.stopped_by: str | None = None
        """The stop string that ended the answer."""

    def push(self, token_id: int, *, is_silent: bool = False) -> list[Piece]:
        """What the next token makes known. A silent token counts, but gives no text.

        After a stop string nothing counts and nothing comes.
        Raises: RequestError for an id outside the vocabulary.
        """
        if self.stopped_by is not None:
            return []
        self.num_tokens += 1
        if is_silent:
            return []
        marker = self._markers.get(token_id)
        if marker is not None:
            pieces = self.finish()
            if self.stopped_by is not None:
                return pieces
            if marker in self._stop and self.num_tokens > self._min_tokens:
                self.stopped_by = marker
            return [*pieces, Piece(marker=marker)]
        if token_id in self._hidden:
            return []
        return self._search(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> list[Piece]:
        """Everything held back, an unfinished character as U+FFFD."""
        if self.stopped_by is not None:
            return []
        pieces = self._search(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        held = "" if self.stopped_by else self._scanner.flush()
        return [*pieces, Piece(held)] if held else pieces

    def _search(self, text: str) -> list[Piece]:
        """`text` up to a stop string, less what may begin one."""
        if self.num_tokens <= self._min_tokens:
            return [Piece(text)] if text else []
        pieces: list[Piece] = []
        for piece in self._scanner.feed(text):
            if piece.marker is None:
                pieces.append(piece)
                continue
            self.stopped_by = piece.marker
            if self._includes_stop:
                pieces.append(Piece(piece.marker))
            break
        return pieces
