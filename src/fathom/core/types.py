"""What crosses the borders of the core: requests in, step plans to a device and back, events out.

All are frozen plain data, so that any of them can go through msgspec to another process. The two
that are made hundreds of times a step are named tuples, which cost a third of a frozen dataclass
to make; elsewhere there are dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from fathom.core.sampling_checks import MAX_BAD_LENGTH as MAX_BAD_LENGTH
from fathom.core.sampling_checks import MAX_BAD_SEQUENCES as MAX_BAD_SEQUENCES
from fathom.core.sampling_checks import MAX_CHOICES as MAX_CHOICES
from fathom.core.sampling_checks import MAX_LOGPROBS as MAX_LOGPROBS
from fathom.core.sampling_checks import MAX_STOP_STRINGS as MAX_STOP_STRINGS
from fathom.core.sampling_checks import normalize
from fathom.core.structured import MAX_GRAMMAR_CHARS as MAX_GRAMMAR_CHARS
from fathom.core.structured import StructuredOutputs as StructuredOutputs

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


# Tokens up to the one that opens the reasoning; before it there is white space at most.
_MOST_TO_OPEN = 4


@dataclass(frozen=True, slots=True)
class ReasoningLimit:
    """At most `num_tokens` of reasoning; then `end_id` comes, whatever the model would say.

    `start_id` opens the reasoning where it is one of the first outputs (later on, an answer speaks
    of it); None where the prompt has opened it.
    """

    num_tokens: int
    end_id: int
    start_id: int | None = None

    def is_reached(self, output_ids: Sequence[int]) -> bool:
        """Whether the token after `output_ids` must be `end_id`."""
        num_inside = len(output_ids)
        if self.start_id is not None:
            if self.start_id not in output_ids[:_MOST_TO_OPEN]:
                return False
            num_inside -= output_ids.index(self.start_id) + 1
        return num_inside == self.num_tokens and self.end_id not in output_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; vLLM's names and meanings.

    `temperature` 0 is greedy. `top_k` 0 means all. `max_tokens` None means up to the context.
    `stop` strings are matched on text, by the layer that detokenizes; everything else here is the
    core's and the sampler's business. `logprobs` k gives the chosen token's and the top k;
    `prompt_logprobs` the same for prompt positions. `structured_outputs`: the form of the answer.
    No tokens but `allowed_token_ids` come, and no sequence of `bad_token_ids` comes whole, except
    where the form of the answer leaves nothing else.
    `repetition_detection` ends an answer that loops, unless `ignore_eos` asks for tokens whatever
    they are.

    An instance is valid and in normal form: lists become tuples, one stop string a tuple of it,
    `top_k` -1 becomes 0.

    Raises: RequestError whose `param` names the field at fault.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    skip_special_tokens: bool = True
    reasoning_limit: ReasoningLimit | None = None
    structured_outputs: StructuredOutputs | None = None
    repetition_detection: bool = True

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in normalize(given).items():
            if value is not given[name]:
                object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to continue, already validated. `n` > 1 has been split before it comes here.

    `seed` is concrete (drawn by the caller where the client gave none). `eos_token_ids` end the
    sequence unless `sampling.ignore_eos`. `cache_salt` parts tenants' prefix caches. Lower
    `priority` goes first. `arrival_s` on the caller's clock.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Admission:
    """What a worker must know of a sequence before its first entry (again after a preemption).

    `known_ids` are the tokens before the entry's `start` (their KV is already in the pages: a
    prefix hit). The first `num_prompt` tokens of the sequence are its prompt (penalties treat
    prompt and output tokens differently; the place in the random stream and `min_tokens` count
    outputs).
    """

    known_ids: tuple[int, ...]
    num_prompt: int
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...]


@runtime_checkable  # which the decoder of plans needs
class Mask(Protocol):
    """The tokens allowed at the sampled positions of an entry."""

    def read(self) -> bytes:
        """Packed bits (little-endian, bit i of byte i // 8), one row per sampled position.

        May compute them: whoever runs the step asks late, when the device is at work, or in a
        thread beside it.
        """
        ...


class MaskRows:
    """A mask that is known. No dataclass: between processes, masks travel apart from the plan."""

    __slots__ = ("_bits",)

    def __init__(self, bits: bytes) -> None:
        self._bits = bits

    def read(self) -> bytes:
        """The rows."""
        return self._bits


class PlanEntry(NamedTuple):
    """One sequence's part of a step: compute `tokens` at positions `start`, `start` + 1, ...

    `tokens` None means one token: the last one that the previous plan sampled for this sequence,
    still on the device (run-ahead). `drafts` are computed after `tokens` and verified: position
    `start + len(tokens) - 1 + i` checks draft i. `new_pages` extend the sequence's page table.
    `samples` says whether the last position (and the drafts) yield tokens; a prefill chunk that is
    not the prompt's last does not. `admission` is given on the first entry of a sequence.
    `mask` None allows all tokens.
    """

    id: int
    start: int
    tokens: tuple[int, ...] | None
    new_pages: tuple[int, ...] = ()
    samples: bool = True
    drafts: tuple[int, ...] = ()
    admission: Admission | None = None
    mask: Mask | None = None

    @property
    def num_tokens(self) -> int:
        """Positions computed by this entry, drafts included."""
        return (1 if self.tokens is None else len(self.tokens)) + len(self.drafts)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. `dropped` are sequences that workers forget before it (ended, preempted).

    `num_drafts` is how many tokens each sampling entry should propose for the next step. A plan
    without entries is legal: an idle rank in lock step with busy ones, or a message that only
    drops.
    """

    step: int
    entries: tuple[PlanEntry, ...]
    dropped: tuple[int, ...] = ()
    num_drafts: int = 0

    @property
    def num_tokens(self) -> int:
        """Positions computed by the step."""
        return sum(entry.num_tokens for entry in self.entries)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token itself, its rank (1 is the most likely),
    and the most likely others as (id, logprob), best first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: per sequence id, 1..drafts+1 accepted tokens, and proposals for the next.

    `prompt_logprobs` holds rows for the prompt positions that this step computed, where asked:
    the row for position p (p >= 1) scores prompt token p. `elapsed_s` is the device's time.
    """

    step: int
    tokens: Mapping[int, tuple[int, ...]]
    drafts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    elapsed_s: float = 0.0


class TokenEvent(NamedTuple):
    """News of one request: tokens since the last event, and why it ended, if it did.

    `stop_token_id`: the token that ended it where a stop token did (None for eos and length).
    `num_cached` prompt tokens came from the prefix cache. `queued_s` from arrival to first
    schedule, set on the first event. `error` explains `finish_reason` "error", which is the
    request's own fault where `blames_request`: its grammar grew too large.
    """

    id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached: int = 0
    queued_s: float | None = None
    error: str = ""
    blames_request: bool = False


@dataclass(frozen=True, slots=True)
class CoreStats:
    """Gauges and lifetime counters of the core, for metrics."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    draft_rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
