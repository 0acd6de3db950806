"""Sorts the text of one answer into its channels: reasoning, the answer proper, tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fathom.text.arguments import RepairLevel
from fathom.text.delta import ToolCallDelta
from fathom.text.markers import (
    CALL_BEGIN,
    CALLS_BEGIN,
    REASONING_MARKERS,
    TOOL_MARKERS,
    Piece,
)
from fathom.text.reasoning import ReasoningSplitter
from fathom.text.scan import Scanner
from fathom.text.tools import ToolCallParser, ToolFormat


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How to read an answer. The default reads none of it: all is text.

    `splits_reasoning`: part it at `<think>` and `</think>`; `starts_inside`: the prompt has opened
    the reasoning; `starts_after`: it has closed it, too; `opens_reasoning`: the model will open it.
    `tools`: the format of tool calls, where the request offers tools; `repairs`: what is mended in
    their arguments. `may_call`: without tools too, the model knows markers of calls.
    """

    splits_reasoning: bool = False
    starts_inside: bool = False
    starts_after: bool = False
    opens_reasoning: bool = False
    tools: ToolFormat | None = None
    repairs: RepairLevel = "closing"
    may_call: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that structure the answer."""
        reasoning = REASONING_MARKERS if self.splits_reasoning else ()
        return reasoning + (TOOL_MARKERS if self.tools or self.may_call else ())


@dataclass(slots=True)
class Told:
    """What a piece of an answer made known, by channel."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)

    def add(self, parts: Iterable[str | ToolCallDelta]) -> None:
        """Take in what a parser of tool calls gave."""
        for part in parts:
            if isinstance(part, str):
                self.text.append(part)
            else:
                self.calls.append(part)


class Channels:
    """The state of one answer that is read as `format`. `spelled` are the markers that come as
    text, `hidden` those that are told of but not shown where no call was offered; `name` makes the
    ids of tool calls unique."""

    def __init__(
        self,
        format: OutputFormat,
        spelled: Iterable[str],
        name: str,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self._spelled = Scanner(spelled)
        self._reasoning = self._tools = None
        self._has_stray_markup = False
        if format.splits_reasoning:
            ends_at = frozenset((CALLS_BEGIN, CALL_BEGIN)) if format.tools else frozenset()
            self._reasoning = ReasoningSplitter(
                starts_inside=format.starts_inside, has_ended=format.starts_after, ends_at=ends_at
            )
        self._hidden = frozenset(() if format.tools else hidden.intersection(TOOL_MARKERS))
        if format.tools:
            self._tools = ToolCallParser(lambda i: f"{name}_{i}", format.repairs)

    @property
    def is_inside(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._reasoning is not None and self._reasoning.is_inside

    def cut_reasoning(self) -> None:
        """Say that it was a budget, and not the model, that just ended the reasoning."""
        if self._reasoning is not None:
            self._reasoning.was_cut = True

    @property
    def is_answer(self) -> bool:
        """Whether what comes next is the answer proper, as far as is known."""
        return not self.is_inside and (self._tools is None or self._tools.is_outside)

    @property
    def trims(self) -> bool:
        """Whether line breaks that come next are dropped."""
        return self._reasoning is not None and self._reasoning.trims_start

    @property
    def num_calls(self) -> int:
        """Tool calls so far."""
        return 0 if self._tools is None else self._tools.num_calls

    @property
    def has_stray_markup(self) -> bool:
        """Whether markup came that was of no use."""
        return self._has_stray_markup or (self._tools is not None and self._tools.has_stray_markup)

    def read(self, pieces: Iterable[Piece], told: Told) -> None:
        """Sort pieces of text."""
        for piece in pieces:
            if piece.marker is None:
                spelled = self._spelled.feed(piece.text)
            else:
                spelled = [Piece(self._spelled.flush()), piece]
            for part in spelled:
                self._sort(part, told)

    def _sort(self, piece: Piece, told: Told) -> None:
        if not piece.text and piece.marker is None:
            return
        if piece.marker in self._hidden:
            self._has_stray_markup = True
            return
        parts = [("answer", piece)] if self._reasoning is None else self._reasoning.push(piece)
        for channel, part in parts:
            if channel == "reasoning":
                if self._tools is not None:
                    told.add(self._tools.interrupt())
                told.reasoning.append(part.text or part.marker or "")
                self._has_stray_markup |= part.marker is not None
            elif self._tools is None:
                told.text.append(part.text or part.marker or "")
                self._has_stray_markup |= part.marker is not None
            else:
                told.add(self._tools.push(part))

    def flush(self, told: Told) -> None:
        """Sort what the stages hold back."""
        self._sort(Piece(self._spelled.flush()), told)
        if self._reasoning is not None:
            told.reasoning.extend(part.text for _, part in self._reasoning.finish())
        if self._tools is not None:
            told.add(self._tools.finish())
