"""What `LLM` gives back: vLLM's names for the fields of an offline answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fathom.core.types import SamplingParams, TokenEvent
from fathom.engine.requests import failure
from fathom.text.delta import Delta, FinishReason, TokenLogprob
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token at a position: natural log-probability, rank (1 is the likeliest), its text."""

    logprob: float
    rank: int
    decoded_token: str


Position = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice. `logprobs` has one mapping from token ids per token, where asked for; their sum
    over the chosen tokens is `cumulative_logprob`. `stop_reason` is the stop string or token id
    that ended it, None for the end of the answer and for length."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: list[Position] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One prompt and its answers. `prompt` is None where token ids were given.

    `prompt_logprobs`, where asked for, has one entry per prompt token; the first is None.
    `num_cached_tokens` of the prompt came from the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: list[Position | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int


@dataclass(slots=True)
class Choice:
    """A choice while it grows."""

    stream: OutputStream
    index: int
    wants_logprobs: bool
    form: str = ""  # the field that says it
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta | None = None

    @classmethod
    def begin(cls, tokenizer: Tokenizer, sampling: SamplingParams, index: int) -> Choice:
        """A choice without tokens."""
        stream = OutputStream(tokenizer, sampling, index=index)
        form = sampling.structured_outputs
        return cls(stream, index, sampling.logprobs is not None, form.field if form else "")

    def push(self, event: TokenEvent) -> None:
        """Add an event.

        Raises: EngineError where the engine gave up on it, RequestError where its form did.
        """
        if event.finish_reason == "error":
            raise failure(event, self.form)
        delta = self.stream.push(event)
        if delta is None:
            return
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.last = delta

    def output(self) -> CompletionOutput:
        """The choice as far as it got."""
        scored = self.logprobs if self.wants_logprobs else None
        return CompletionOutput(
            index=self.index,
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            cumulative_logprob=None if scored is None else sum(row.logprob for row in scored),
            logprobs=None if scored is None else positions(scored),
            finish_reason=self.last.finish_reason if self.last else None,
            stop_reason=self.last.stop_reason if self.last else None,
        )


def positions(rows: Iterable[TokenLogprob]) -> list[Position]:
    """One mapping per row: the likeliest tokens, and the token itself where it is not of them."""
    result = []
    for row in rows:
        position = {
            top.token_id: Logprob(top.logprob, rank, top.token)
            for rank, top in enumerate(row.top, start=1)
        }
        position[row.token_id] = Logprob(row.logprob, row.rank, row.token)
        result.append(position)
    return result
