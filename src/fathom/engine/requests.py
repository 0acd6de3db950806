"""One request with `n` choices, as the `n` sequences that the core runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from fathom.core.types import Request, SamplingParams, TokenEvent
from fathom.errors import EngineError, FathomError, RequestError, not_valid
from fathom.text.channels import OutputFormat
from fathom.text.grammar.asked import Asked, ToolRules

_MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrendered:
    """A conversation in OpenAI's form, for an engine that renders it itself: an upstream server.

    `thinking` None: the model's default; `budget`: most tokens of it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    thinking: bool | None = None
    budget: int | None = None
    add_generation_prompt: bool | None = None
    continues: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What to generate, with the prompt as tokens. `id` is unique among the running requests.

    `format` says how to read reasoning and tool calls out of the answer; the default reads none.
    `tools`: calls that the answer may or must make, where that is to be enforced.
    `cache_salt` parts tenants' prefix caches. Lower `priority` goes first. `unrendered` stands for
    a prompt where nothing here could render it; then `prompt_ids` are none.
    Raises: RequestError for a priority beyond 32 bits.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    format: OutputFormat = field(default_factory=OutputFormat)
    cache_salt: str = ""
    priority: int = 0
    tools: ToolRules | None = None
    unrendered: Unrendered | None = None

    def __post_init__(self) -> None:
        if not -_MAX_PRIORITY <= self.priority <= _MAX_PRIORITY:
            raise not_valid("priority", wanted="a whole number of 32 bits")

    @property
    def asked(self) -> Asked | None:
        """What restricts the answers; None where nothing does."""
        return Asked.of(self.sampling.structured_outputs, self.tools, self.format)


def failure(event: TokenEvent, field: str) -> FathomError:
    """Why the engine gave up on a sequence, whose form of answer is the request's `field`."""
    what = "the engine could not complete the answer"
    if not event.blames_request:
        return EngineError(what, found=event.error)
    code = "schema_state_limit"
    return RequestError(f"{field}: {what}", param=field, code=code, found=event.error)


class SeedSource:
    """Seeds for requests that give none: the same engine seed and order of requests, the same
    seeds."""

    def __init__(self, engine_seed: int) -> None:
        self._random = random.Random(engine_seed)

    def draw(self) -> int:
        """The next seed, 63 bits."""
        return self._random.getrandbits(63)


def split(
    request: GenerateRequest, *, seed: int, eos_ids: tuple[int, ...], arrival_s: float
) -> tuple[Request, ...]:
    """The request's sequences: choice i has the id `<id>-<i>` and the seed `seed + i`.

    Only the first scores the prompt: the scores of all would be the same.
    """
    # The form of the answer has become a grammar, which travels by itself.
    first = replace(request.sampling, n=1, structured_outputs=None)
    rest = replace(first, prompt_logprobs=None)
    return tuple(
        Request(
            id=f"{request.id}-{index}",
            prompt_ids=request.prompt_ids,
            sampling=rest if index else first,
            seed=seed + index,
            eos_token_ids=eos_ids,
            cache_salt=request.cache_salt,
            priority=request.priority,
            arrival_s=arrival_s,
        )
        for index in range(request.sampling.n)
    )
