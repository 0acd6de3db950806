"""One choice of an answer: token events in, deltas of text, reasoning and tool calls out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fathom.core.types import SamplingParams, TokenEvent, TokenLogprobs
from fathom.text.arguments import RepairLevel
from fathom.text.delta import Delta, FinishReason, TokenLogprob, ToolCallDelta, TopToken
from fathom.text.detokenize import Detokenizer
from fathom.text.markers import (
    CALL_BEGIN,
    CALLS_BEGIN,
    REASONING_MARKERS,
    TOOL_MARKERS,
    Piece,
)
from fathom.text.reasoning import ReasoningSplitter
from fathom.text.scan import Scanner
from fathom.text.tokenizer import Tokenizer
from fathom.text.tools import ToolCallParser, ToolFormat


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How to read an answer. The default reads none of it: all is text.

    `splits_reasoning`: part it at `<think>` and `</think>`; `starts_inside`: the prompt has opened
    the reasoning; `opens_reasoning`: the model will. `tools`: the format of tool calls, where the
    request offers tools; `repairs`: what is mended in their arguments.
    """

    splits_reasoning: bool = False
    starts_inside: bool = False
    opens_reasoning: bool = False
    tools: ToolFormat | None = None
    repairs: RepairLevel = "closing"

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that structure the answer."""
        reasoning = REASONING_MARKERS if self.splits_reasoning else ()
        return reasoning + (TOOL_MARKERS if self.tools else ())


class OutputStream:
    """The state of one choice. Push its events in order; a delta comes back for each.

    Stop strings are searched in all text that the model writes, reasoning and tool calls included
    (as vLLM does). When one ends the answer, `push` gives the final delta and `needs_cancel` is
    set: the engine does not know of it and must be told. Tokens after it are not counted.
    `name` makes the ids of tool calls unique.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        index: int = 0,
        format: OutputFormat | None = None,
        name: str = "0",
    ) -> None:
        self._tokenizer = tokenizer
        self._index = index
        self._includes_stop = sampling.include_stop_str_in_output
        format = format or OutputFormat()
        ids = {marker: tokenizer.special_ids.get(marker) for marker in format.markers}
        self._detokenizer = Detokenizer(
            tokenizer,
            stop=sampling.stop,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            skip_special_tokens=sampling.skip_special_tokens,
            min_tokens=sampling.min_tokens,
            markers={token_id: marker for marker, token_id in ids.items() if token_id is not None},
        )
        # A tokenizer without a token for a marker writes it as text.
        self._spelled = Scanner(marker for marker, token_id in ids.items() if token_id is None)
        self._reasoning = self._tools = None
        if format.splits_reasoning:
            ends_at = frozenset((CALLS_BEGIN, CALL_BEGIN)) if format.tools else frozenset()
            self._reasoning = ReasoningSplitter(starts_inside=format.starts_inside, ends_at=ends_at)
        if format.tools:
            self._tools = ToolCallParser(lambda i: f"call_{name}_{index}_{i}", format.repairs)
        self._has_stray_markup = False
        self.is_finished = False
        """Whether the last delta has been given."""
        self.needs_cancel = False
        """Whether a stop string ended the answer before the engine did."""
        self.num_reasoning_tokens = 0
        self.num_cached = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, up to the one that completed a stop string."""
        return self._detokenizer.num_tokens

    def push(self, event: TokenEvent) -> Delta | None:
        """What the event adds; None once the answer is finished."""
        if self.is_finished:
            return None
        told = _Told()
        self.num_cached = max(self.num_cached, event.num_cached)
        num_used = self._read_tokens(event, told)
        if event.finish_reason is not None:
            self._read(self._detokenizer.finish(), told)
        self.is_finished = event.finish_reason is not None or self._has_stopped
        self.needs_cancel = self._has_stopped and event.finish_reason is None
        if self.is_finished:
            self._flush(told)
        finish_reason, stop_reason = self._ending(event)
        return Delta(
            index=self._index,
            text="".join(told.text),
            reasoning="".join(told.reasoning),
            tool_calls=tuple(told.calls),
            token_ids=event.token_ids[:num_used],
            logprobs=tuple(map(self._logprob, event.logprobs[:num_used])),
            prompt_logprobs=tuple(map(self._logprob, event.prompt_logprobs)),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_tokens=self.num_tokens,
            num_reasoning_tokens=self.num_reasoning_tokens,
            num_cached=self.num_cached,
            has_stray_markup=self._has_stray_markup
            or (self._tools is not None and self._tools.has_stray_markup),
            error=event.error,
        )

    @property
    def _has_stopped(self) -> bool:
        return self._detokenizer.stopped_by is not None

    @property
    def _has_calls(self) -> bool:
        return self._tools is not None and self._tools.num_calls > 0

    def _read_tokens(self, event: TokenEvent, told: _Told) -> int:
        """Read the event's tokens up to a stop string; how many that were.

        The engine stops at tokens only, so the last token of its "stop" is not part of the text.
        """
        ended_by_token = event.finish_reason == "stop" and not self._includes_stop
        last = len(event.token_ids) - 1
        for position, token_id in enumerate(event.token_ids):
            is_silent = ended_by_token and position == last
            was_inside = self._reasoning is not None and self._reasoning.is_inside
            self._read(self._detokenizer.push(token_id, is_silent=is_silent), told)
            if was_inside and self._reasoning is not None and self._reasoning.is_inside:
                self.num_reasoning_tokens += not is_silent
            if self._detokenizer.stopped_by is not None:
                return position + 1
        return len(event.token_ids)

    def _ending(self, event: TokenEvent) -> tuple[FinishReason | None, str | int | None]:
        """The reason and its detail; a stop string comes before whatever the engine says."""
        if self._detokenizer.stopped_by is not None:
            return "stop", self._detokenizer.stopped_by
        if event.finish_reason == "stop" and event.stop_token_id is None and self._has_calls:
            return "tool_calls", None
        return event.finish_reason, event.stop_token_id

    def _read(self, pieces: Iterable[Piece], told: _Told) -> None:
        """Sort pieces of text into channels."""
        for piece in pieces:
            if piece.marker is None:
                spelled = self._spelled.feed(piece.text)
            else:
                spelled = [Piece(self._spelled.flush()), piece]
            for part in spelled:
                self._sort(part, told)

    def _sort(self, piece: Piece, told: _Told) -> None:
        if piece == Piece():
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
            else:
                told.add(self._tools.push(part))

    def _flush(self, told: _Told) -> None:
        """Sort what the stages hold back."""
        self._sort(Piece(self._spelled.flush()), told)
        if self._reasoning is not None:
            told.reasoning.extend(part.text for _, part in self._reasoning.finish())
        if self._tools is not None:
            told.add(self._tools.finish())

    def _logprob(self, row: TokenLogprobs) -> TokenLogprob:
        text, raw = self._tokenizer.token_text, self._tokenizer.token_bytes
        return TokenLogprob(
            token_id=row.token_id,
            token=text(row.token_id),
            bytes=raw(row.token_id),
            logprob=row.logprob,
            rank=row.rank,
            top=tuple(TopToken(other, text(other), raw(other), value) for other, value in row.top),
        )


@dataclass(slots=True)
class _Told:
    """What one event made known, by channel."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)

    def add(self, parts: Iterable[str | ToolCallDelta]) -> None:
        for part in parts:
            if isinstance(part, str):
                self.text.append(part)
            else:
                self.calls.append(part)
