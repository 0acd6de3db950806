"""Collects deltas: the choices of a whole answer, and the counts of any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec import json

from fathom.text.delta import Delta, TokenLogprob, ToolCallDelta


@dataclass(slots=True)
class Call:
    """A tool call as it grows; `arguments` are pieces of JSON text."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)
    flaw: str = ""

    @property
    def arguments(self) -> str:
        """What there is of its JSON text."""
        return "".join(self.pieces)

    def as_object(self) -> dict[str, Any]:
        """The arguments where they have to be an object: what the model wrote that is none goes by
        a name that says so."""
        try:
            parsed = json.decode(self.arguments or "{}")
        except ValueError:
            parsed = None
        return parsed if isinstance(parsed, dict) else {"INVALID_JSON": self.arguments}

    def as_text(self) -> str:
        """JSON text of that object: the model's own where it is one."""
        told = self.as_object()
        is_own = self.arguments and "INVALID_JSON" not in told
        return self.arguments if is_own else json.encode(told).decode()


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of a response, all of its choices together; `cached` are of the prompt."""

    prompt: int
    completion: int
    reasoning: int
    cached: int


class Choice:
    """One choice of a whole answer, as its deltas come."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, Call] = {}
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.has_stray_markup = False

    def add(self, delta: Delta) -> None:
        """Take a delta in."""
        self._text.append(delta.text)
        self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            known = self._calls.setdefault(call.index, Call(call.id or "", call.name or ""))
            known.pieces.append(call.arguments)
            known.flaw = known.flaw or call.flaw
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.has_stray_markup |= delta.has_stray_markup
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def text(self) -> str:
        """The answer proper."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """What the model thought before."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[Call]:
        """Whole calls, in order."""
        return [call for _, call in sorted(self._calls.items())]


class Tally:
    """Token counts of a response: each prompt once, each choice's totals so far."""

    def __init__(self, prompt_lens: Iterable[int]) -> None:
        self._prompts = dict(enumerate(prompt_lens))
        self._totals: dict[tuple[int, int], tuple[int, int]] = {}
        self._cached: dict[int, int] = {}

    def add(self, number: int, delta: Delta) -> None:
        """Take a delta of prompt `number` in. The first choice computes the prompt; the others
        find it in the cache, which says nothing about what was there before."""
        self._totals[number, delta.index] = (delta.num_tokens, delta.num_reasoning_tokens)
        if delta.index == 0:
            self._cached[number] = delta.num_cached
        if delta.num_prompt is not None:
            self._prompts[number] = delta.num_prompt

    def counts(self) -> Counts:
        """The counts so far."""
        return Counts(
            sum(self._prompts.values()),
            sum(tokens for tokens, _ in self._totals.values()),
            sum(reasoning for _, reasoning in self._totals.values()),
            sum(self._cached.values()),
        )


def stray(answer: Delta | Choice) -> dict[str, bool]:
    """`has_stray_markup`, where some of the text is markup."""
    return {"has_stray_markup": True} if answer.has_stray_markup else {}


def flaw_of(call: Call | ToolCallDelta) -> dict[str, str]:
    """`arguments_flaw`, "repaired" or "invalid", where the model did not write JSON."""
    return {"arguments_flaw": call.flaw} if call.flaw else {}
