"""Parts an answer into reasoning and the rest, at `<think>` and `</think>`."""

from __future__ import annotations

from typing import Literal

from fathom.text.markers import CALL_BEGIN, END_THINK, REASONING_MARKERS, SEP, THINK, Piece

Channel = Literal["reasoning", "answer"]


class ReasoningSplitter:
    """Gives each piece of an answer its channel; the markers themselves are dropped.

    `starts_inside`: the prompt opened the reasoning; `has_ended`: it closed it. Newlines next to
    the markers belong to the format (R1 writes `<think>\\n...\\n</think>\\n\\n...`) and are dropped
    with them; nothing else is. `ends_at` are further markers that end reasoning (a model that goes
    from thinking straight to a tool call).

    Reasoning comes first: once text has come `<think>` is a word, and so is `</think>` once the
    reasoning has ended. A model that is asked about them, or that writes a program about them,
    samples the same tokens. An end to what nothing began parts nothing.
    """

    def __init__(
        self,
        *,
        starts_inside: bool,
        has_ended: bool = False,
        ends_at: frozenset[str] = frozenset(),
    ) -> None:
        self.is_inside = starts_inside
        self.was_cut = False
        """Whether a budget ended the reasoning: the model may yet write an end of its own."""
        self._ends_at = ends_at
        self.trims_start = starts_inside
        self._newlines: list[str] = []
        self._has_ended = has_ended
        self._has_text = self._is_in_call = False

    def push(self, piece: Piece) -> list[tuple[Channel, Piece]]:
        """The piece by channel, less newlines that may turn out to stand before `</think>`."""
        if piece.marker == END_THINK and self.was_cut and not self._is_in_call:
            self.was_cut = False
            return []
        if piece.marker in REASONING_MARKERS:
            if not self._is_word(piece.marker):
                self._turn(piece.marker == THINK)
                return []
            self._has_ended = not self.is_inside
        elif piece.marker is not None:
            self._is_in_call = piece.marker in (CALL_BEGIN, SEP)
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
        self._has_text = self._has_text or not (self._is_in_call or text.isspace())
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

    def _is_word(self, marker: str | None) -> bool:
        """Whether a marker of reasoning stands for itself here."""
        if marker == END_THINK and self.is_inside:
            return False
        return self._is_in_call or (self._has_text and (marker == THINK or self._has_ended))

    def _turn(self, is_inside: bool) -> None:
        if is_inside != self.is_inside:
            self.trims_start = True
            self._has_text, self._has_ended = False, not is_inside
        self.is_inside = is_inside
        self._newlines = []
