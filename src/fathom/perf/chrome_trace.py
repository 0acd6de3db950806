"""A simulation in the Trace Event Format, which chrome://tracing and Perfetto open: the steps of
the devices, how full queue and pages were, and each request from its sending to its end.

Source: the document "Trace Event Format" of the Chromium project. Times are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fathom.perf.simulation import Simulation

_DEVICES, _REQUESTS = 1, 2


def chrome_trace(found: Simulation) -> Iterator[bytes]:
    """The JSON, in pieces."""
    encode = msgspec.json.Encoder().encode
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    for number, event in enumerate(_events(found)):
        yield (b",\n" if number else b"") + encode(event)
    yield b"\n]}\n"


def _events(found: Simulation) -> Iterator[dict[str, Any]]:
    for pid, name in ((_DEVICES, "devices"), (_REQUESTS, "requests")):
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield from _steps(found)
    for record, started_s in zip(found.report.records, found.started_s, strict=True):
        spans = [("queued", record.sent_s, record.end_s if started_s is None else started_s)]
        if started_s is not None and record.times_s:
            spans.append(("prefill", started_s, record.times_s[0]))
            spans.append(("decode", record.times_s[0], record.end_s))
        whole = (f"request {record.index}", record.sent_s, record.end_s)
        for name, begin_s, end_s in (whole, *spans):
            span = {"pid": _REQUESTS, "tid": 0, "cat": "request", "id": record.index, "name": name}
            more: dict[str, int | str] = {}
            if name == whole[0]:
                more = {"prompt": record.prompt_tokens, "output": record.output_tokens}
                if record.error_kind:
                    more |= {"error": record.error_kind}
            yield {**span, "ph": "b", "ts": _us(begin_s), "args": more}
            yield {**span, "ph": "e", "ts": _us(end_s)}


def _steps(found: Simulation) -> Iterator[dict[str, Any]]:
    line = found.timeline
    for index in range(len(line)):
        begin_s, tokens = line.begin_s[index], line.num_tokens[index]
        prefill = line.prefill_tokens[index]
        yield {
            "ph": "X",
            "pid": _DEVICES,
            "tid": 0,
            "name": "prefill and decode" if prefill else "decode",
            "ts": _us(begin_s),
            "dur": _us(line.end_s[index] - begin_s),
            "args": {
                "tokens": tokens,
                "prefill tokens": prefill,
                "sequences": line.num_sequences[index],
            },
        }
        kv_percent = round(100 * line.kv_usage[index], 2)
        counters: tuple[tuple[str, dict[str, float]], ...] = (
            ("sequences", {"running": line.running[index], "waiting": line.waiting[index]}),
            ("KV use (%)", {"used": kv_percent}),
        )
        for name, values in counters:
            yield {"ph": "C", "pid": _DEVICES, "name": name, "ts": _us(begin_s), "args": values}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
