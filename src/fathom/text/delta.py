"""News of one choice of an answer: what the server streams and the offline API collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from fathom.text.arguments import Flaw

FinishReason = Literal["stop", "length", "repetition", "tool_calls", "abort", "error"]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of tool call number `index`: `id` and `name` come once, with its first piece.

    The last piece of one whose arguments were not JSON has a `flaw`: "repaired" where they are
    now, "invalid" where they stay as the model wrote them.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    flaw: Flaw = ""


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the likeliest tokens at a position."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability (natural), its rank (1 is the likeliest), and the likeliest.

    `token` is U+FFFD where the token is only part of a character; `bytes` are exact.
    """

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    rank: int
    top: tuple[TopToken, ...] = ()


class Delta(Struct, frozen=True, kw_only=True):
    """What is new of choice `index`. A struct, because one is made for every token.

    `text` is the answer proper, `reasoning` what the model thought before it. `token_ids` and
    `logprobs` come when the tokens do, text when it is certain, so they need not match one by one
    (`logprobs` and `token_ids` do). `text_logprobs` are those of the answer proper, as far as is
    known when they come. `stop_reason` is the stop string or stop token id. The counts are totals
    so far; `num_prompt` is there where an upstream rendered the prompt.
    `has_stray_markup`: some text is markup, of tool calls that could not be read or of reasoning.
    `error` explains finish_reason "error".
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    text_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_cached: int = 0
    has_stray_markup: bool = False
    num_prompt: int | None = None
    error: str = ""

    @property
    def calls_by_age(self) -> tuple[tuple[ToolCallDelta, ...], tuple[ToolCallDelta, ...]]:
        """Pieces of the call that was open, which come before the text, and those after it."""
        starts = (place for place, call in enumerate(self.tool_calls) if call.id is not None)
        first = next(starts, len(self.tool_calls))
        return self.tool_calls[:first], self.tool_calls[first:]

    @property
    def is_empty(self) -> bool:
        """Whether a client would see nothing new."""
        told = self.text or self.reasoning or self.tool_calls
        return not (told or self.logprobs or self.prompt_logprobs or self.finish_reason)
