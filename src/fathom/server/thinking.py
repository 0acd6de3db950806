"""Reasoning, asked for under many names: one meaning, or a refusal where two names disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fathom.errors import RequestError
from fathom.text.templates import ChatTemplate

_MAX_BUDGET = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request asks. `is_on` None: the model's default. `budget`: most tokens of it.
    `param`: the field by which it asks, or the first of them."""

    is_on: bool | None = None
    budget: int | None = None
    param: str = "thinking"

    def mode(self, template: ChatTemplate) -> bool:
        """Whether the model will think. Raises: RequestError where it cannot do what is asked."""
        return template.thinking_mode(self.is_on, self.param)


def one_meaning(
    spellings: Mapping[str, bool | None], budgets: Mapping[str, int | None] | None = None
) -> Thinking:
    """What all spellings, by the names of their fields, say together; None: not sent.

    Raises: RequestError where two disagree, or a budget is below 0 or beyond 32 bits.
    """
    said = {name: value for name, value in spellings.items() if value is not None}
    limits = {name: value for name, value in (budgets or {}).items() if value is not None}
    if len(set(said.values())) > 1:
        raise _disagree("the request asks for reasoning and against it", said)
    if len(set(limits.values())) > 1:
        raise _disagree("the request limits reasoning twice", limits)
    budget = next(iter(limits.values()), None)
    if budget and False in said.values():
        raise _disagree("the request limits reasoning that it does not want", {**said, **limits})
    if budget is not None and not 0 <= budget <= _MAX_BUDGET:
        raise RequestError(
            "the limit on reasoning is not valid",
            param=next(iter(limits)),
            found=repr(budget)[:80],
            wanted="0 or more tokens",
        )
    param, is_on = next(iter(said.items()), ("thinking", None))
    return Thinking(is_on, budget, param)


def _disagree(what: str, said: Mapping[str, object]) -> RequestError:
    return RequestError(
        what, param=next(reversed(list(said))), found=", ".join(said), fix="send one of them"
    )
