"""One choice of an answer: token events in, deltas of text, reasoning and tool calls out."""

from __future__ import annotations

from fathom.core.types import SamplingParams, TokenEvent, TokenLogprobs
from fathom.text.channels import Channels, OutputFormat, Told
from fathom.text.delta import Delta, FinishReason, TokenLogprob, TopToken
from fathom.text.detokenize import Detokenizer
from fathom.text.tokenizer import Tokenizer


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
        limit = sampling.reasoning_limit
        self._most_reasoning = None if limit is None else limit.num_tokens
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
        spelled = [marker for marker, token_id in ids.items() if token_id is None]
        hides = tokenizer.hidden_ids if sampling.skip_special_tokens else frozenset()
        hidden = frozenset(marker for marker, token_id in ids.items() if token_id in hides)
        self._channels = Channels(format, spelled, f"call_{name}_{index}", hidden)
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
        told = Told()
        self.num_cached = max(self.num_cached, event.num_cached)
        num_used, places = self._read_tokens(event, told)
        if event.finish_reason is not None:
            self._channels.read(self._detokenizer.finish(), told)
        self.is_finished = event.finish_reason is not None or self._has_stopped
        self.needs_cancel = self._has_stopped and event.finish_reason is None
        if self.is_finished:
            self._channels.flush(told)
        finish_reason, stop_reason = self._ending(event)
        logprobs = tuple(map(self._logprob, event.logprobs[:num_used]))
        return Delta(
            index=self._index,
            text="".join(told.text),
            reasoning="".join(told.reasoning),
            tool_calls=tuple(told.calls),
            token_ids=event.token_ids[:num_used],
            logprobs=logprobs,
            text_logprobs=tuple(logprobs[place] for place in places) if logprobs else (),
            prompt_logprobs=tuple(map(self._logprob, event.prompt_logprobs)),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_tokens=self.num_tokens,
            num_reasoning_tokens=self.num_reasoning_tokens,
            num_cached=self.num_cached,
            has_stray_markup=self._channels.has_stray_markup,
            error=event.error,
        )

    @property
    def _has_stopped(self) -> bool:
        return self._detokenizer.stopped_by is not None

    def _read_tokens(self, event: TokenEvent, told: Told) -> tuple[int, list[int]]:
        """Read the event's tokens up to a stop string; how many that were, and which of them are
        of the answer proper.

        The engine stops at tokens only, so the last token of its "stop" is not part of the text.
        """
        ended_by_token = event.finish_reason == "stop" and not self._includes_stop
        last = len(event.token_ids) - 1
        places: list[int] = []
        for position, token_id in enumerate(event.token_ids):
            is_silent = ended_by_token and position == last
            was_inside = self._channels.is_inside
            may_score = bool(event.logprobs) and self._may_be_answer(token_id, is_silent)
            self._channels.read(self._detokenizer.push(token_id, is_silent=is_silent), told)
            if was_inside and self._channels.is_inside:
                self.num_reasoning_tokens += not is_silent
            elif was_inside and self.num_reasoning_tokens == self._most_reasoning:
                self._channels.cut_reasoning()
            if may_score and self._channels.is_answer:
                places.append(position)
            if self._detokenizer.stopped_by is not None:
                return position + 1, places
        return len(event.token_ids), places

    def _may_be_answer(self, token_id: int, is_silent: bool) -> bool:
        """Whether the token would be of the answer proper if it is no marker, before it is read."""
        is_trimmed = self._channels.trims and not self._tokenizer.token_text(token_id).strip("\n")
        return self._channels.is_answer and not is_silent and not is_trimmed

    def _ending(self, event: TokenEvent) -> tuple[FinishReason | None, str | int | None]:
        """The reason and its detail; a stop string comes before whatever the engine says."""
        if self._detokenizer.stopped_by is not None:
            return "stop", self._detokenizer.stopped_by
        ended = event.finish_reason == "stop" and event.stop_token_id is None
        if ended and self._channels.num_calls:
            return "tool_calls", None
        return event.finish_reason, event.stop_token_id

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
