"""Compares deltas, however events are grouped, with the answer read as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.types import ReasoningLimit, SamplingParams, TokenEvent, TokenLogprobs
from fathom.text.channels import OutputFormat
from fathom.text.delta import Delta
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer

EOS = "<｜end▁of▁sentence｜>"
CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
    '{"a": "é"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
FULL = OutputFormat(splits_reasoning=True, starts_inside=True, tools="bare")


@dataclass
class Answer:
    """Deltas of one choice, joined."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: tuple[int, ...] = ()
    last: Delta = field(default_factory=Delta)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.token_ids += delta.token_ids
        self.last = delta
        for call in delta.tool_calls:
            if call.name is not None:
                assert call.index == len(self.calls)
                self.calls.append({"id": call.id, "name": call.name, "arguments": ""})
            self.calls[call.index]["arguments"] += call.arguments


def read(
    stream: OutputStream, ids: tuple[int, ...], sizes: list[int], finish: str | None = "stop"
) -> Answer:
    """Push `ids` in events of the given sizes (then one by one); the last says `finish`."""
    answer = Answer()
    rest, sizes = list(ids), list(sizes)
    while rest:
        size = min(len(rest), max(1, sizes.pop(0) if sizes else 1))
        event_ids, rest = tuple(rest[:size]), rest[size:]
        event = TokenEvent("r", event_ids, finish_reason=None if rest else finish)  # type: ignore[arg-type]
        delta = stream.push(event)
        if delta is None:
            assert stream.is_finished
            break
        answer.add(delta)
    return answer


SIZES = st.lists(st.integers(1, 5), max_size=20)


@given(sizes=SIZES)
@settings(max_examples=50, deadline=None)
def test_reasoning_answer_and_calls_come_apart(tokenizer: Tokenizer, sizes: list[int]) -> None:
    text = f"\nI think 你好\n</think>\n\nHello 世界!{CALL}{EOS}"
    ids = tokenizer.encode(text, special=True)
    stream = OutputStream(tokenizer, SamplingParams(), index=3, format=FULL, name="abc")
    answer = read(stream, ids, sizes)
    assert answer.reasoning == "I think 你好"
    assert answer.text == "Hello 世界!"
    assert answer.calls == [{"id": "call_abc_3_0", "name": "f", "arguments": '{"a": "é"}'}]
    assert answer.token_ids == ids
    last = answer.last
    assert (last.finish_reason, last.stop_reason, last.index) == ("tool_calls", None, 3)
    assert last.num_tokens == stream.num_tokens == len(ids)
    end = ids.index(tokenizer.special_ids["</think>"])
    assert last.num_reasoning_tokens == end
    assert not stream.needs_cancel


@given(sizes=SIZES, shows=st.booleans(), has_tokens=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_call_where_none_was_offered_is_told_of(
    tokenizer: Tokenizer, bare_tokenizer: Tokenizer, sizes: list[int], shows: bool, has_tokens: bool
) -> None:
    """Its words are the answer's, its markers as far as special tokens are shown."""
    used = tokenizer if has_tokens else bare_tokenizer
    form = OutputFormat(splits_reasoning=True, starts_inside=True, may_call=True)
    sampling = SamplingParams(skip_special_tokens=not shows)
    ids = (*used.encode(f"a</think>b{CALL}", special=True), used.eos_ids[0])
    answer = read(OutputStream(used, sampling, format=form), ids, sizes)
    assert (answer.reasoning, answer.calls) == ("a", [])
    assert answer.text == f"b{used.decode(used.encode(CALL, special=True), not shows)}"
    assert answer.last.has_stray_markup
    assert answer.last.finish_reason == "stop"


@given(sizes=SIZES, budget=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_an_end_of_the_models_own_behind_a_budgets_is_no_word(
    tokenizer: Tokenizer, sizes: list[int], budget: int
) -> None:
    """It goes on to think, and ends that; what comes of the marker afterwards is the answer's."""
    end = tokenizer.special_ids["</think>"]
    thoughts = tokenizer.encode("abc"[:budget])
    ids = (*thoughts, end, *tokenizer.encode("on "), end, *tokenizer.encode("so "), end, 5)
    limit = ReasoningLimit(len(thoughts), end)
    stream = OutputStream(tokenizer, SamplingParams(reasoning_limit=limit), format=FULL)
    answer = read(stream, ids, sizes, "length")
    assert answer.reasoning == tokenizer.decode(thoughts)
    assert answer.text == f"on so </think>{tokenizer.decode([5])}"


@given(sizes=SIZES, text=st.text(max_size=20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_plain_answers_are_the_decode(
    tokenizer: Tokenizer, sizes: list[int], text: str, data: st.DataObject
) -> None:
    raw = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=10))
    ids = (*tokenizer.encode(text), *(i for i in raw if i not in tokenizer.eos_ids), 5)
    answer = read(OutputStream(tokenizer, SamplingParams()), ids, sizes, "length")
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert (answer.last.finish_reason, answer.last.num_tokens) == ("length", len(ids))


@given(sizes=SIZES, includes=st.booleans())
@settings(max_examples=50, deadline=None)
def test_stop_string_ends_the_answer_before_the_engine(
    tokenizer: Tokenizer, sizes: list[int], includes: bool
) -> None:
    sampling = SamplingParams(stop=("never", "STOP"), include_stop_str_in_output=includes)
    ids = tokenizer.encode("go on STOP and on and on")
    needed = next(n for n in range(len(ids)) if "STOP" in tokenizer.decode(ids[:n]))
    stream = OutputStream(tokenizer, sampling)
    answer = read(stream, ids, sizes, None)
    assert answer.text == ("go on STOP" if includes else "go on ")
    assert answer.token_ids == ids[:needed]
    assert answer.last.num_tokens == needed
    assert (answer.last.finish_reason, answer.last.stop_reason) == ("stop", "STOP")
    assert stream.needs_cancel
    assert stream.push(TokenEvent("r", (), finish_reason="abort")) is None


def test_stop_string_in_the_last_event_needs_no_cancel(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a STOP b")
    stream = OutputStream(tokenizer, SamplingParams(stop=("STOP",)))
    delta = stream.push(TokenEvent("r", ids, finish_reason="length"))
    assert delta is not None
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a ", "stop", "STOP")
    assert not stream.needs_cancel


@pytest.mark.parametrize("skip", [False, True])
def test_stop_tokens_count_and_are_not_shown(tokenizer: Tokenizer, skip: bool) -> None:
    word = tokenizer.encode("x")[0]
    for stop_id, stop_token_id in ((tokenizer.eos_ids[0], None), (word, word)):
        sampling = SamplingParams(skip_special_tokens=skip)
        ids = (*tokenizer.encode("ab"), stop_id)
        event = TokenEvent("r", ids, finish_reason="stop", stop_token_id=stop_token_id)
        delta = OutputStream(tokenizer, sampling).push(event)
        assert delta is not None
        assert (delta.text, delta.stop_reason) == ("ab", stop_token_id)
        assert (delta.num_tokens, delta.token_ids) == (len(ids), ids)


def test_logprobs_follow_their_tokens(tokenizer: Tokenizer) -> None:
    """Also where the text waits: half a character, or what may be a stop string."""
    ids = tokenizer.encode("☃S")
    assert len(ids) > 2
    rows = tuple(TokenLogprobs(i, -0.5, 1, ((i, -0.5), (5, -2.0))) for i in ids)
    stream = OutputStream(tokenizer, SamplingParams(stop=("ST",), logprobs=2))
    for token_id, row in zip(ids, rows, strict=True):
        delta = stream.push(TokenEvent("r", (token_id,), logprobs=(row,)))
        assert delta is not None
        assert delta.token_ids == (token_id,)
        (entry,) = delta.logprobs
        assert (entry.token_id, entry.logprob, entry.rank) == (token_id, -0.5, 1)
        assert entry.bytes == tokenizer.token_bytes(token_id)
        assert entry.token == entry.bytes.decode("utf-8", "replace")
        assert [(top.token_id, top.logprob) for top in entry.top] == [(token_id, -0.5), (5, -2.0)]
        assert not delta.is_empty
    delta = stream.push(TokenEvent("r", (), finish_reason="length"))
    assert delta is not None
    assert delta.text == "S"


def test_logprobs_end_with_the_stop_string(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("STOP and more")
    rows = tuple(TokenLogprobs(i, -1.0, 2, ()) for i in ids)
    stream = OutputStream(tokenizer, SamplingParams(stop=("STOP",), logprobs=0))
    delta = stream.push(TokenEvent("r", ids, logprobs=rows, prompt_logprobs=rows[:1]))
    assert delta is not None
    assert len(delta.logprobs) == len(delta.token_ids) == delta.num_tokens < len(ids)
    assert delta.prompt_logprobs[0].token_id == ids[0]


@pytest.mark.parametrize("reason", ["abort", "error", "length"])
def test_whatever_ends_the_answer_flushes_it(tokenizer: Tokenizer, reason: str) -> None:
    ids = tokenizer.encode("I thought ST")
    stream = OutputStream(tokenizer, SamplingParams(stop=("STOP",)), format=FULL)
    first = stream.push(TokenEvent("r", ids, num_cached=7))
    last = stream.push(TokenEvent("r", (), finish_reason=reason, error="why"))  # type: ignore[arg-type]
    assert first is not None
    assert last is not None
    assert (first.reasoning, last.reasoning) == ("I thought ", "ST")
    assert (first.num_cached, last.num_cached) == (7, 7)
    assert (last.finish_reason, last.error) == (reason, "why")
    assert stream.is_finished


def test_calls_cut_off_by_length_keep_that_reason(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("</think>" + CALL, special=True)[:-3]
    answer = read(OutputStream(tokenizer, SamplingParams(), format=FULL), ids, [], "length")
    assert answer.calls[0]["arguments"].startswith('{"a": "')
    assert answer.last.finish_reason == "length"


def test_markers_are_text_where_nobody_reads_them(tokenizer: Tokenizer) -> None:
    """As Hugging Face's decoder shows them: these tokens are not declared special."""
    ids = tokenizer.encode(f"<think>a</think>b{CALL}{EOS}", special=True)
    answer = read(OutputStream(tokenizer, SamplingParams()), ids, [3, 4])
    assert answer.text == f"<think>a</think>b{CALL}"
    assert answer.calls == []


@given(sizes=SIZES)
@settings(max_examples=30, deadline=None)
def test_a_tokenizer_without_the_markers_spells_them(
    bare_tokenizer: Tokenizer, sizes: list[int]
) -> None:
    assert "<think>" not in bare_tokenizer.special_ids
    ids = (*bare_tokenizer.encode(f"I think</think>Hello{CALL}"), *bare_tokenizer.eos_ids)
    stream = OutputStream(bare_tokenizer, SamplingParams(), format=FULL)
    answer = read(stream, ids, sizes)
    assert (answer.reasoning, answer.text) == ("I think", "Hello")
    assert answer.calls == [{"id": "call_0_0_0", "name": "f", "arguments": '{"a": "é"}'}]


def test_a_marker_with_a_token_follows_the_text_before_it(thinker: Tokenizer) -> None:
    """Text that may begin a spelled marker is told before the marker that has a token."""
    ids = (*thinker.encode("a <｜tool"), *thinker.encode("</think>b", special=True))
    answer = read(OutputStream(thinker, SamplingParams(), format=FULL), ids, [], "length")
    assert (answer.reasoning, answer.text) == ("a <｜tool", "b")


def test_spelled_markers_of_a_full_tokenizer_are_text(tokenizer: Tokenizer) -> None:
    """A model that writes about `</think>` in ordinary tokens does not end its reasoning."""
    ids = (*tokenizer.encode("a </think> b"), tokenizer.special_ids["</think>"])
    answer = read(OutputStream(tokenizer, SamplingParams(), format=FULL), ids, [], "length")
    assert (answer.reasoning, answer.text) == ("a </think> b", "")


PARTS = ["a", "b c", "\n", "ST", "OP", "function", "f\n```json\n", "{}", "\n```", "你", EOS]
MARKED = st.lists(
    st.sampled_from([*PARTS, *OutputFormat(splits_reasoning=True, tools="bare").markers]),
    max_size=14,
).map("".join)


@given(
    text=MARKED,
    sizes=SIZES,
    format=st.builds(
        OutputFormat,
        splits_reasoning=st.booleans(),
        starts_inside=st.booleans(),
        tools=st.sampled_from([None, "fenced", "bare"]),
    ),
    stop=st.sampled_from([(), ("STOP",), ("a", "STOP")]),
    bare=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_grouping_of_events_changes_nothing(
    tokenizer: Tokenizer,
    bare_tokenizer: Tokenizer,
    text: str,
    sizes: list[int],
    format: OutputFormat,
    stop: tuple[str, ...],
    bare: bool,
) -> None:
    """Whatever the model writes, with tokens for the markers and without."""
    used = bare_tokenizer if bare else tokenizer
    ids = (*used.encode(text, special=True), used.eos_ids[0])
    sampling = SamplingParams(stop=stop, skip_special_tokens=False)

    def answer(sizes: list[int]) -> Answer:
        return read(OutputStream(used, sampling, format=format), ids, sizes)

    one_by_one, grouped = answer([]), answer(sizes)
    for part in ("text", "reasoning", "calls", "token_ids"):
        assert getattr(grouped, part) == getattr(one_by_one, part)
    for part in ("finish_reason", "stop_reason", "num_tokens", "num_reasoning_tokens"):
        assert getattr(grouped.last, part) == getattr(one_by_one.last, part)
