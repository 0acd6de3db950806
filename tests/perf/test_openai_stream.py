"""Compares what the client tells of a scripted server, over the loopback, with the server's own
record of what it wrote when."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sse_server import Script, start, stop
from fathom.errors import ConfigError
from fathom.perf.drive import Answer, WallClock, drive
from fathom.perf.http_stream import BrokenStream, HttpClient, Origin
from fathom.perf.openai_stream import Asking, EventReader, OpenAISender, message_of
from fathom.perf.report import Report
from fathom.perf.workload import LoadRequest, Workload

# How much later than it was written a busy machine may see a piece.
LATE_S = 0.5
ONE = LoadRequest(prompt="hello", prompt_len=1, output_len=3)


def asking(**more: Any) -> Asking:
    settings = {"dialect": "completions", "path": "/v1/completions", "timeout_s": 20.0, **more}
    return Asking(model="scripted", keeps_text=True, **settings)


def with_server(script: Script, work: Callable[[OpenAISender], Awaitable[Any]], **more: Any) -> Any:
    """What `work` gives with a sender to a server that follows the script."""

    async def run() -> Any:
        server, port = await start(script)
        clock = WallClock()
        http = HttpClient(Origin("127.0.0.1", port, False), {"X-Test": "yes"}, clock.now_s)
        try:
            async with asyncio.timeout(30):
                return await work(OpenAISender(http, asking(**more), clock.now_s))
        finally:
            await http.close()
            await stop(server, script)

    return asyncio.run(run())


def ask(script: Script, request: LoadRequest = ONE, **more: Any) -> Answer:
    answer: Answer = with_server(script, lambda sender: sender(0, request), **more)
    return answer


@pytest.mark.parametrize("dialect", ["completions", "chat"])
@pytest.mark.parametrize("has_length", [True, False])
def test_a_stream_is_told_as_it_was_written(dialect: str, has_length: bool) -> None:
    path = "/v1/chat/completions" if dialect == "chat" else "/v1/completions"
    script = Script(first_s=0.03, gap_s=0.02, has_length=has_length)
    answer = ask(script, dialect=dialect, path=path, options={"temperature": 0.5})
    assert (answer.error_kind, answer.error) == ("", "")
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 3)
    [written_s] = script.written_s
    assert len(written_s) == len(answer.times_s) == 3
    for wrote_s, came_s in zip(written_s, answer.times_s, strict=True):
        assert wrote_s <= came_s < wrote_s + LATE_S
    assert answer.times_s[-1] <= answer.end_s < written_s[-1] + LATE_S
    assert [line.split()[1] for line in answer.text.splitlines()] == [repr(t) for t in written_s]
    [body], [headers] = script.bodies, script.headers
    asked = (
        {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 3}
        if dialect == "chat"
        else {"prompt": "hello", "max_tokens": 3}
    )
    assert body == {
        "model": "scripted",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        **asked,
    }
    assert headers["x-request-id"] == "bench-0"
    assert headers["x-test"] == "yes"


def measure(script: Script, workload: Workload) -> Report:
    report: Report = with_server(script, lambda sender: drive(workload, sender, WallClock()))
    return report


def test_connections_are_kept_and_no_more_than_needed() -> None:
    script = Script(first_s=0.005)
    report = measure(script, Workload(requests=(ONE,) * 30, max_concurrency=3))
    assert len(report.complete) == 30
    assert script.num_connections <= 3
    assert script.most_out == report.peak_concurrency() == 3


def test_a_server_that_stands_still_shows_in_what_was_due_meanwhile() -> None:
    """All of ten requests are due while the server holds the first of them; with one place in the
    client, nine are not even sent until it goes on."""

    async def work(sender: OpenAISender) -> Report:
        script.hold = asyncio.Event()
        requests = tuple(
            LoadRequest(prompt="x", prompt_len=1, output_len=1, at_s=0.02 * (index + 1))
            for index in range(10)
        )
        load = Workload(requests=requests, max_concurrency=1)
        driving = asyncio.create_task(drive(load, sender, WallClock()))
        await asyncio.sleep(0.5)  # the stall itself
        script.hold.set()
        return await driving

    script = Script()
    report: Report = with_server(script, work)
    released_s = script.written_s[0][0] - report.began_s
    for one in report.complete:
        assert one.end_s - one.due_s >= released_s - one.due_s > 0.25
    assert min(report.samples_s("e2el")) > 0.25
    assert sum(value < 0.2 for value in report.samples_s("e2el_from_send")) >= 5
    assert len(report.complete) == 10


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (Script(refuse_first=1, status=503), "HTTP 503", "told to say 503"),
        (Script(refuse_first=1, status=400), "HTTP 400", "told to say 400"),
        (Script(cut_after=1), "broken stream", "hung up"),
        (Script(cut_after=1, has_length=False), "broken stream", "without [DONE]"),
        (Script(events=[b"data: {oops\n\n"]), "broken stream", "not an event"),
        (Script(events=[b"data: [1]\n\n"]), "broken stream", "not an event"),
        (Script(events=[b"data: [DONE]\n\n"]), "empty answer", "no event"),
        (
            Script(
                events=[b'data: {"error": {"message": "out of luck"}}\n\n', b"data: [DONE]\n\n"]
            ),
            "error in the stream",
            "out of luck",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_are_told_by_kind(script: Script, kind: str, message: str) -> None:
    answer = ask(script)
    assert answer.error_kind == kind
    assert message in answer.error


def test_a_server_that_says_nothing_is_left_at_the_deadline() -> None:
    answer = ask(Script(first_s=60.0), timeout_s=0.05)
    assert (answer.error_kind, answer.error) == ("timeout", "no end after 0.05 s")


def test_nobody_there_is_no_connection() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def run() -> Answer:
            clock = WallClock()
            http = HttpClient(Origin("127.0.0.1", port, False), {}, clock.now_s)
            return await OpenAISender(http, asking(), clock.now_s)(0, ONE)

        answer = asyncio.run(run())
    assert answer.error_kind == "no connection"
    assert str(errno.ECONNREFUSED) in answer.error


def test_a_kept_connection_that_was_closed_is_no_failure() -> None:
    """A server may close an idle connection at any time, also just as a request is on its way."""

    async def work(sender: OpenAISender) -> list[Answer]:
        answers = []
        for index in range(3):
            answers.append(await sender(index, ONE))
            for transport in script.open:
                transport.abort()  # the client does not know yet
        return answers

    script = Script()
    answers = with_server(script, work)
    assert [one.error_kind for one in answers] == ["", "", ""]
    assert script.num_connections == 3


EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"reasoning_content": "hm"}}]},
    {"choices": [{"delta": {"content": "né"}}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}},
]
WIRE = b": keep-alive\n\n" + b"".join(
    b"data: " + json.dumps(event, ensure_ascii=False).encode() + end
    for event, end in zip(EVENTS, [b"\n\n", b"\r\n\r\n"] * 3, strict=True)
) + b"data: [DONE]\n\n"  # fmt: skip


@given(st.lists(st.integers(0, len(WIRE)), max_size=8))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    reader = EventReader(keeps_text=True)
    ends = [0, *sorted(cuts), len(WIRE)]
    for low, high in pairwise(ends):
        reader.feed(WIRE[low:high], float(high))
    assert reader.text == "hmné"
    assert len(reader.times_s) == 3  # the empty first chunk and the last are no tokens
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (5, 3)
    assert reader.is_done
    assert reader.has_finish
    assert not reader.error


def test_an_event_that_is_no_json_breaks_the_stream() -> None:
    with pytest.raises(BrokenStream, match="not an event"):
        EventReader(keeps_text=False).feed(b"data: {\n", 0.0)


def test_messages_of_errors_in_every_form() -> None:
    assert message_of({"error": {"message": "a"}}) == "a"
    assert message_of({"message": "b"}) == "b"
    assert message_of({"error": "c"}) == "c"
    assert message_of("d") == "d"


def test_urls() -> None:
    assert Origin.of("http://h:1/x/") == Origin("h", 1, False, "/x")
    assert Origin.of("h") == Origin("h", 80, False)
    assert Origin.of("https://h").url == "https://h:443"
    assert Origin.of("http://[::1]:7").authority == "[::1]:7"
    for wrong in ("ftp://h", "http://", "http://h:x", "http://h:99999"):
        with pytest.raises(ConfigError, match="--base-url"):
            Origin.of(wrong)
    with pytest.raises(ConfigError, match="--header"):
        HttpClient(Origin("h", 1, False), {"A": "b\r\nC: d"}, WallClock().now_s)
