"""Every number of a plan with the formula that it comes from."""

from __future__ import annotations

from collections.abc import Iterator

from fathom.commands.messages import table
from fathom.commands.plan import Answer
from fathom.perf.candidate import Candidate, format_seconds
from fathom.perf.shape import prefill_shape
from fathom.units import format_bytes


def explained(answer: Answer) -> Iterator[str]:
    """The lines: bytes as the ledger tells them, sums, and each kernel of two steps."""
    words, best = answer.asked.words, answer.best
    yield ""
    yield words("label.explain")
    yield from table(
        [[words.part(one.part), format_bytes(one.num_bytes), one.formula] for one in best.ledger]
    )
    yield from (f"  {line}" for line in _sums(answer))
    yield from _steps(answer)


def _sums(answer: Answer) -> Iterator[str]:
    words, best, demand = answer.asked.words, answer.best, answer.asked.demand
    found, money, tokens = best.steady, answer.costs, demand.request_len
    yield words(
        "explain.kv",
        dp=best.layout.dp,
        each=best.kv_tokens_each,
        tokens=tokens,
        users=best.users_at(tokens),
    )
    if found is None or money is None:
        return
    step, tpot = format_seconds(found.step_s), format_seconds(found.tpot_s)
    rate, ttft = f"{found.requests_per_s:.4g}", format_seconds(found.ttft_s)
    yield words("explain.ttft", ttft=ttft, **_first_token(best))
    yield words("explain.tpot", step=step, share=f"{found.prefill_share:.0%}", tpot=tpot)
    yield words(
        "explain.rate",
        users=best.users,
        ttft=ttft,
        tokens=demand.output_len - 1,
        tpot=tpot,
        rate=rate,
    )
    hour, currency = f"{money.hour:.2f}" if money.hour is not None else "", money.currency
    if money.million is not None:
        yield words(
            "explain.million",
            hour=hour,
            currency=currency,
            rate=rate,
            tokens=tokens,
            utilization=f"{money.utilization:g}",
            million=f"{money.million:.3g}",
        )
    if money.break_even is not None and money.api_million is not None:
        yield words(
            "explain.break_even",
            hour=hour,
            currency=currency,
            rate=rate,
            request=f"{money.api_million * tokens / 1e6:.3g}",
            share=f"{money.break_even:.0%}",
        )
    if money.watts:
        yield words(
            "explain.energy",
            watts=f"{money.watts:g} W",
            rate=rate,
            tokens=tokens,
            joules=f"{money.joules_token:.3g}",
        )


def _first_token(best: Candidate) -> dict[str, str]:
    """The parts of the time to a first token."""
    assert best.model is not None
    assert best.steady is not None
    found, entry_s = best.steady, best.model.calibration.first_token_s
    queue_s = found.ttft_s - entry_s - found.prompt_s - found.shared_s - found.ahead_s
    parts = (entry_s, queue_s, found.prompt_s, found.shared_s, found.ahead_s)
    names = ("entry", "queue", "prompt", "shared", "ahead")
    return dict(zip(names, map(format_seconds, parts), strict=True))


def _steps(answer: Answer) -> Iterator[str]:
    words, best, demand = answer.asked.words, answer.best, answer.asked.demand
    if best.model is None or best.steady is None:
        return
    step = best.decode_step(demand)
    prompt = prefill_shape([(demand.input_len, demand.input_len)], num_sampled=1)
    sources: dict[str, None] = {}
    for name, count, shape in (
        ("decode", step.num_sequences, step),
        ("prompt", demand.input_len, prompt),
    ):
        total = format_seconds(best.model.device_s(shape))
        yield "  " + words(f"explain.{name}", count=count) + words("text.colon") + total
        lines = best.model.explain(shape)
        sources.update(dict.fromkeys(one.source for one in lines))
        rows = [[one.name, format_seconds(one.seconds), one.bound, one.formula] for one in lines]
        yield from table(rows, indent="    ")
    yield "  " + words("explain.sources") + words("text.colon").rstrip()
    yield from (f"    {source}" for source in sources)
