"""Parts an answer into reasoning and the rest, at `<think>` and `</think>`."""

from __future__ import annotations

from typing import Literal

from fathom.text.markers import END_THINK, THINK, Piece

Channel = Literal["reasoning", "answer"]


class ReasoningSplitter:
    """Gives each piece of an answer its channel; the markers themselves are dropped.

    `starts_inside`: the prompt opened the reasoning. Newlines next to the markers belong to the
    format (R1 writes `<think>\\n...\\n</think>\\n\\n...`) and are dropped with them; nothing else
    is. An end without a beginning parts nothing. `ends_at` are further markers that end reasoning
    (a model that goes from thinking straight to a tool call).
    """

    def __init__(self, *, starts_inside: bool, ends_at: frozenset[str] = frozenset()) -> None:
        self.is_inside = starts_inside
        self._ends_at = ends_at
        self.trims_start = starts_inside
        self._newlines: list[str] = []

    def push(self, piece: Piece) -> list[tuple[Channel, Piece]]:
        """The piece by channel, less newlines that may turn out to stand before `</think>`."""
        if piece.marker == THINK or piece.marker == END_THINK:
            self._turn(piece.marker == THINK)
            return []
        if piece.marker is not None:
            if piece.marker not in self._ends_at:
                held = self._release()
                channel: Channel = "reasoning" if self.is_inside else "answer"
                return [*held, (channel, piece)]
            if self.is_inside:
                self._turn(False)
            self.trims_start = False
            return [("answer", piece)]
        text = piece.text
        if self.trims_start:
            text = text.lstrip("\n")
            if not text:
                return []
            self.trims_start = False
        if not self.is_inside:
            return [("answer", Piece(text))]
        body = text.rstrip("\n")
        if not body:
            self._newlines.append(text)
            return []
        told = "".join((*self._newlines, body))
        self._newlines = [text[len(body) :]]
        return [("reasoning", Piece(told))]

    def finish(self) -> list[tuple[Channel, Piece]]:
        """Newlines held back, where the answer ended inside the reasoning."""
        return self._release()

    def _release(self) -> list[tuple[Channel, Piece]]:
        held, self._newlines = "".join(self._newlines), []
        return [("reasoning", Piece(held))] if held else []

    def _turn(self, is_inside: bool) -> None:
        if is_inside != self.is_inside:
            self.trims_start = True
        self.is_inside = is_inside
        self._newlines = []
