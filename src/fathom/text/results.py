"""Results of tools beside the calls that they answer. DeepSeek's formats tell them by order alone,
so that one in another's place would be taken for the other's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from fathom.errors import RequestError


def in_call_order(messages: Sequence[Any], param: str) -> list[int]:
    """Which of `messages`, in OpenAI's form and checked, is to stand at each place: results in the
    order of the calls of the assistant's message before them, and all others where they are.

    Raises: RequestError for a result of no such call, and where one is missing before another.
    """
    order = list(range(len(messages)))
    answers = [index for index in order if messages[index]["role"] == "assistant"]
    for start, end in pairwise((-1, *answers, len(messages))):
        places = [index for index in order[start + 1 : end] if messages[index]["role"] == "tool"]
        calls = (messages[start].get("tool_calls") or ()) if start >= 0 else ()
        answered = _answered([messages[index] for index in places], calls, places, param)
        has_result = set(answered)
        missing = next((number for number in range(len(calls)) if number not in has_result), None)
        if missing is not None and max(answered, default=0) > missing:
            at = f"{param}[{start}].tool_calls[{missing}]"
            raise RequestError(
                f"{at}: this call has no result, and one after it has",
                param=at,
                found=repr(calls[missing].get("id"))[:80],
                fix="send a result for each call, also where it failed",
            )
        moved = sorted(zip(answered, places, strict=True))
        for place, (_, index) in zip(places, moved, strict=True):
            order[place] = index
    return order


def _answered(
    results: Sequence[Any], calls: Sequence[Any], places: Sequence[int], param: str
) -> list[int]:
    """The number of the call that each result answers: by id, else by name, else in order."""
    found: dict[int, int] = {}
    ids = [call.get("id") for call in calls]
    found |= _matches([result.get("tool_call_id") for result in results], ids)
    are_known = any(ids) or not calls
    for number, result in enumerate(results):
        if number not in found and result.get("tool_call_id") and are_known:
            at = f"{param}[{places[number]}].tool_call_id"
            raise RequestError(
                f"{at}: this result answers no call of the assistant's message before it",
                param=at,
                found=repr(result["tool_call_id"])[:80],
                wanted=", ".join(filter(None, ids))[:200],
                fix="send each result once, behind the message that calls the tool",
            )
    taken = set(found.values())
    named = [None if number in found else one.get("name") for number, one in enumerate(results)]
    names = [None if i in taken else call["function"]["name"] for i, call in enumerate(calls)]
    found |= _matches(named, names)
    taken = set(found.values())
    rest = (number for number in range(len(calls) + len(results)) if number not in taken)
    return [found[number] if number in found else next(rest) for number in range(len(results))]


def _matches(
    wanted: Sequence[str | None], given: Sequence[str | None]
) -> Iterator[tuple[int, int]]:
    """Pairs of places with the same text; the first goes to the first."""
    open_places: dict[str, deque[int]] = {}
    for place, text in enumerate(given):
        if text:
            open_places.setdefault(text, deque()).append(place)
    for place, text in enumerate(wanted):
        if text and open_places.get(text):
            yield place, open_places[text].popleft()
