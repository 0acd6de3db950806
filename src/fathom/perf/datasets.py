"""Requests of a workload: made from a seed, or from the lines of a file that the caller has read.

Tokens come from a `Vocabulary`, lengths of texts from a function that counts: nothing here knows a
tokenizer. Arrivals are added by `perf.workload`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from fathom.errors import ConfigError
from fathom.perf.virtual import Runs, VirtualVocabulary
from fathom.perf.workload import LoadRequest, Prompt

Count = Callable[[str], int]
"""Tokens of a text."""
_SHAREGPT_LIMITS = (4, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens that prompts are made of: their ids, and the text of each."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]

    def draw(self, rng: Random, count: int) -> tuple[int, ...]:
        """`count` places in this vocabulary."""
        return tuple(rng.choices(range(len(self.ids)), k=count))

    def prompt(self, places: Sequence[int], *, as_text: bool) -> Prompt:
        """The prompt that has these tokens. As text it may count a little differently: what two
        tokens say together may be one token."""
        if as_text:
            return "".join(self.texts[place] for place in places)
        return tuple(self.ids[place] for place in places)


AnyVocabulary = Vocabulary | VirtualVocabulary
"""Where the tokens of prompts come from."""


def request(
    vocabulary: AnyVocabulary, places: tuple[int, ...] | Runs, output_len: int, *, as_text: bool
) -> LoadRequest:
    """A request whose prompt has the tokens at `places`."""
    prompt: Prompt
    if isinstance(vocabulary, VirtualVocabulary):
        prompt = vocabulary.prompt(places, as_text=as_text)
    else:
        prompt = vocabulary.prompt(tuple(places), as_text=as_text)
    return LoadRequest(prompt=prompt, prompt_len=len(places), output_len=output_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomShape:
    """Lengths in tokens of random requests. `range_ratio` r draws both lengths evenly from
    [(1 - r) * len, (1 + r) * len]; all prompts begin with the same `prefix_len` tokens."""

    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                "--random-range-ratio", found=str(self.range_ratio), wanted="in [0, 1)"
            )
        if self.prefix_len < 0 or self.input_len < 0 or self.input_len + self.prefix_len < 1:
            raise ConfigError(
                "--random-input-len",
                found=str(self.input_len),
                wanted="a prompt of 1 token or more",
            )
        if self.output_len < 1:
            raise ConfigError("--random-output-len", found=str(self.output_len), wanted="1 or more")


def random_requests(
    count: int, shape: RandomShape, vocabulary: AnyVocabulary, rng: Random, *, as_text: bool = False
) -> list[LoadRequest]:
    """Requests of random tokens."""
    prefix = vocabulary.draw(rng, shape.prefix_len)
    made = []
    for _ in range(count):
        input_len = _around(shape.input_len, shape.range_ratio, rng, least=0 if prefix else 1)
        output_len = _around(shape.output_len, shape.range_ratio, rng, least=1)
        places = prefix + vocabulary.draw(rng, input_len)
        made.append(request(vocabulary, places, output_len, as_text=as_text))
    return made


def _around(length: int, ratio: float, rng: Random, *, least: int) -> int:
    low, high = math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))
    return max(least, rng.randint(low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixShape:
    """Lengths in tokens of requests that share `num_prefixes` prefixes."""

    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128

    def __post_init__(self) -> None:
        for name, least in (("prefix_len", 0), ("suffix_len", 1), ("output_len", 1)):
            _at_least(f"--prefix-repetition-{name.replace('_', '-')}", getattr(self, name), least)
        _at_least("--prefix-repetition-num-prefixes", self.num_prefixes, 1)


def prefix_requests(
    count: int, shape: PrefixShape, vocabulary: AnyVocabulary, rng: Random, *, as_text: bool = False
) -> list[LoadRequest]:
    """Requests of which each begins with one of a few prefixes, equally often, in random order."""
    prefixes = [vocabulary.draw(rng, shape.prefix_len) for _ in range(shape.num_prefixes)]
    turns = [index % shape.num_prefixes for index in range(count)]
    rng.shuffle(turns)
    return [
        request(
            vocabulary,
            prefixes[turn] + vocabulary.draw(rng, shape.suffix_len),
            shape.output_len,
            as_text=as_text,
        )
        for turn in turns
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnShape:
    """Conversations: each turn's prompt is all that was said before and `input_len` new tokens;
    the client thinks for `think_s` seconds between an answer and its next turn."""

    num_turns: int = 4
    input_len: int = 128
    output_len: int = 128
    think_s: float = 1.0

    def __post_init__(self) -> None:
        _at_least("--multi-turn-num-turns", self.num_turns, 1)
        _at_least("--multi-turn-input-len", self.input_len, 1)
        _at_least("--multi-turn-output-len", self.output_len, 1)
        if not 0 <= self.think_s < math.inf:
            raise ConfigError(
                "--multi-turn-think-time", found=str(self.think_s), wanted="0 or more"
            )


def turn_requests(
    count: int, shape: TurnShape, vocabulary: AnyVocabulary, rng: Random, *, as_text: bool = False
) -> list[LoadRequest]:
    """Conversations of `num_turns` turns, `count` requests in all; the last may be shorter.

    What the model answered is not known beforehand: random tokens stand for it in the later turns,
    so that a load is the same whatever answers. A prefix cache finds the earlier prompt again, and
    not the answer.
    """
    made: list[LoadRequest] = []
    said: tuple[int, ...] | Runs = ()
    for index in range(count):
        is_first = index % shape.num_turns == 0
        said = (() if is_first else said) + vocabulary.draw(rng, shape.input_len)
        one = request(vocabulary, said, shape.output_len, as_text=as_text)
        if not is_first:
            one = replace(one, after=index - 1, at_s=shape.think_s)
        made.append(one)
        said += vocabulary.draw(rng, shape.output_len)
    return made


def sharegpt_requests(
    rows: Sequence[Mapping[str, Any]], count: Count, *, limit: int, output_len: int | None = None
) -> list[LoadRequest]:
    """The first question and the length of the first answer of up to `limit` conversations.

    Very short and very long ones are left out by vLLM's bounds: question and answer of 4 tokens or
    more, question of 1024 at most, both of 2048 at most. `output_len` overrides the answer's.
    """
    least, most_prompt, most_total = _SHAREGPT_LIMITS
    made: list[LoadRequest] = []
    for number, row in enumerate(rows, start=1):
        if len(made) >= limit:
            break
        said = row.get("conversations", row.get("conversation")) or []
        if len(said) < 2:
            continue
        try:
            question, answer = str(said[0]["value"]), str(said[1]["value"])
        except (KeyError, TypeError) as error:
            raise _bad_row(number, row, "conversations of {from, value}") from error
        prompt_len = count(question)
        answer_len = count(answer) if output_len is None else output_len
        is_short = prompt_len < least or (output_len is None and answer_len < least)
        if is_short or prompt_len > most_prompt or prompt_len + answer_len > most_total:
            continue
        made.append(LoadRequest(prompt=question, prompt_len=prompt_len, output_len=answer_len))
    return made


def custom_requests(
    rows: Iterable[Mapping[str, Any]], count: Count, *, output_len: int | None
) -> list[LoadRequest]:
    """Requests of lines with `prompt`, and `output_tokens` where `output_len` is None."""
    made = []
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        wanted = row.get("output_tokens") if output_len is None else output_len
        if not isinstance(prompt, str) or not isinstance(wanted, int) or wanted < 1:
            raise _bad_row(
                number, row, "a prompt, and output_tokens or --custom-output-len of 1 or more"
            )
        made.append(LoadRequest(prompt=prompt, prompt_len=count(prompt), output_len=wanted))
    return made


def burstgpt_requests(
    lines: Iterable[str], vocabulary: AnyVocabulary, rng: Random, *, as_text: bool = False
) -> list[LoadRequest]:
    """Random tokens of the lengths in BurstGPT's CSV: its GPT-4 rows that were answered."""
    made = []
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            asked, answered = int(row["Request tokens"]), int(row["Response tokens"])
            is_wanted = row["Model"] == "GPT-4" and asked > 0 and answered > 0
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_row(number, row, "Model, Request tokens and Response tokens") from error
        if is_wanted:
            places = vocabulary.draw(rng, asked)
            made.append(request(vocabulary, places, answered, as_text=as_text))
    return made


def pick(
    requests: Sequence[LoadRequest], count: int, rng: Random, *, shuffle: bool, oversample: bool
) -> list[LoadRequest]:
    """`count` of a file's requests; where there are fewer, some again unless not `oversample`."""
    if not requests:
        raise ConfigError("--dataset-path", found="no usable request", wanted="one or more")
    chosen = list(requests)
    if shuffle:
        rng.shuffle(chosen)
    if oversample and len(chosen) < count:
        chosen += rng.choices(requests, k=count - len(chosen))
    return chosen[:count]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(name, found=str(value), wanted=f"{least} or more")


def _bad_row(number: int, row: object, wanted: str) -> ConfigError:
    return ConfigError(f"--dataset-path: row {number}", found=str(row)[:120], wanted=wanted)
