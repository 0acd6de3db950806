"""What a plan says of costs: of a machine, and of those to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from fathom.commands.messages import Words, table
from fathom.commands.plan import Answer, Machines
from fathom.perf.advise import name_of
from fathom.perf.candidate import format_seconds
from fathom.perf.price import Costs
from fathom.units import format_count


def costs_told(answer: Answer, found: Costs) -> Iterator[str]:
    """The lines on costs and energy."""
    words = answer.asked.words
    yield words("label.cost")
    currency, gpu = found.currency, answer.cluster.gpu
    lines = []
    if found.hour is None or found.million is None or found.million_output is None:
        lines.append(words("text.no_hour", gpu=gpu.name, currency=currency))
    else:
        hour = f"{found.hour:,.2f}"
        lines.append(words("text.hour", cost=hour, currency=currency, source=found.hour_source))
        lines.append(
            words(
                "text.million",
                cost=f"{found.million:.3g}",
                currency=currency,
                output=f"{found.million_output:.3g}",
                utilization=f"{found.utilization:.0%}",
                users=answer.best.users,
            )
        )
    if found.api is None or found.api_million is None:
        lines.append(words("text.no_api", currency=currency))
    else:
        api = found.api
        lines.append(
            words(
                "text.api",
                cost=f"{found.api_million:.3g}",
                currency=currency,
                api=api.id,
                hit=f"{api.cache_hit:g}",
                miss=f"{api.cache_miss:g}",
                output=f"{api.output:g}",
                source=", ".join(filter(None, (api.source, api.date))),
            )
        )
    if found.break_even is not None:
        key = "break_even" if found.break_even <= 1 else "never"
        lines.append(words(f"text.{key}", share=f"{found.break_even:.0%}"))
    lines += [*_month(found, words), *_busiest(answer)]
    yield from (f"  - {line}" for line in lines)
    if not gpu.tdp_w:
        return
    energy = words(
        "text.energy",
        watts=f"{found.watts / 1000:.3g} kW",
        kwh=f"{found.kwh_million:.3g}",
        joules=f"{found.joules_token:.3g}",
    )
    yield words("label.energy") + words("text.colon") + energy


def _busiest(answer: Answer) -> Iterator[str]:
    """What twice as many users, or more, would change."""
    if answer.busiest is None:
        return
    words, (one, found) = answer.asked.words, answer.busiest
    assert one.steady is not None
    if found.million is not None:
        rate = format_count(round(one.output_per_s))
        share = "-" if found.break_even is None else f"{found.break_even:.0%}"
        yield words(
            "text.busiest",
            users=one.users,
            cost=f"{found.million:.3g}",
            currency=found.currency,
            rate=words("text.tokens_s", count=rate),
            tpot=format_seconds(one.steady.tpot_s),
            share=share,
        )


def _month(found: Costs, words: Words) -> Iterator[str]:
    if found.month_own is not None:
        own, capacity = f"{found.month_own:,.0f}", format_count(round(found.month_capacity))
        yield words("text.month_own", own=own, currency=found.currency, capacity=capacity)
    if found.month_tokens is None:
        return
    tokens = format_count(round(found.month_tokens))
    if found.month_api is not None:
        bill = f"{found.month_api:,.0f}"
        yield words("text.month", tokens=tokens, api=bill, currency=found.currency)
    if found.month_tokens > found.month_capacity:
        yield words("text.over_capacity", count=ceil(found.month_tokens / found.month_capacity))


def machines_told(answer: Machines) -> Iterator[str]:
    """The verdict, and a line for each machine."""
    words = answer.asked.words
    if not answer.options:
        yield words("verdict.none", model=answer.model.name)
        return
    yield words("verdict.machines", model=answer.model.name)
    rows = []
    for one in answer.options:
        found, hour = one.best.steady, one.hour
        assert found is not None
        price = words("text.option_unknown")
        if hour is not None:
            price = words("text.option", hour=f"{hour:,.2f}", currency=answer.currency)
        rows.append(
            [
                f"--gpu {name_of(one.cluster)}",
                price,
                one.best.precision.name,
                f"TTFT {format_seconds(found.ttft_s)}",
                f"TPOT {format_seconds(found.tpot_s)}",
                words("text.tokens_s", count=format_count(round(found.output_per_s))),
            ]
        )
    yield from table(rows)
