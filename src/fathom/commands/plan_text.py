"""A plan for people: the verdict, then the numbers that it stands on."""

from __future__ import annotations

from collections.abc import Iterator

from fathom.commands.messages import Words, table
from fathom.commands.plan import Answer, Machines
from fathom.commands.plan_costs import costs_told, machines_told
from fathom.commands.plan_explain import explained
from fathom.perf.candidate import Candidate, Reason, format_seconds
from fathom.perf.held_weights import stored_bytes
from fathom.perf.memory import kv_bytes_per_token, total_bytes
from fathom.perf.search import why_lost
from fathom.perf.users import MOST_USERS
from fathom.spec.formats import BFLOAT16
from fathom.spec.hardware import Cluster
from fathom.spec.parallel import Layout
from fathom.units import format_bytes, format_count

_MOST_ROWS = 10
_CONFIDENCE = {
    "measured on this machine": "measured_here",
    "measured on this GPU type": "measured_gpu",
    "roofline": "roofline",
}


def told(answer: Answer | Machines) -> list[str]:
    """The lines."""
    if isinstance(answer, Machines):
        return list(machines_told(answer))
    return list(_answer(answer))


def say(words: Words, one: Reason) -> str:
    """A reason in words."""
    return words(f"reason.{one.key}", **dict(one.values))


def _answer(answer: Answer) -> Iterator[str]:
    words, best = answer.asked.words, answer.best
    names = {
        "model": answer.model.name,
        "machine": machine(answer.cluster),
        "weights": best.precision.name,
    }
    if answer.against is not None:
        yield words(f"verdict.{'refuted' if answer.against else 'plausible'}", **names)
        yield from (f"  - {say(words, one)}" for one in answer.against)
        yield ""
    yield words(f"verdict.{answer.verdict}", **names)
    yield from (f"  - {one}" for one in missed(words, answer))
    colon = words("text.colon")
    if answer.changes:
        yield words("label.change") + colon.rstrip()
        yield from (f"  - {say(words, one)}" for one in answer.changes)
    elif answer.verdict in ("limited", "no") and answer.against is None:
        yield words("label.change") + colon + words("reason.change_none")
    yield ""
    yield from _facts(answer, words)
    yield from _memory(best, words)
    if best.steady is not None:
        yield from _speed(answer, words)
    yield from _layouts(answer, words)
    if answer.costs is not None:
        yield from costs_told(answer, answer.costs)
    if answer.asked.explain:
        yield from explained(answer)


def missed(words: Words, answer: Answer) -> Iterator[str]:
    """What the best candidate falls short of, and what keeps the published weights out."""
    best = answer.best
    is_said = any(one.key == "context" for one in best.shortfalls)
    if best.fits and best.context < best.asked_context and not is_said:
        most, asked = format_count(best.context), format_count(best.asked_context)
        yield words("text.context_short", most=most, asked=asked)
    yield from (say(words, one) for one in best.shortfalls)
    exact = [one for one in answer.candidates if one.precision.is_exact]
    for one in exact[:1]:
        if not one.fits:
            over = format_bytes(one.over_bytes)
            yield words("text.exact", weights=one.precision.name, bytes=over)


def machine(cluster: Cluster) -> str:
    """`8 x H20 SXM 96GB`."""
    return f"{cluster.num_gpus} x {cluster.gpu.name}"


def _facts(answer: Answer, words: Words) -> Iterator[str]:
    model, cluster, best = answer.model, answer.cluster, answer.best
    mtp = model.mtp_parameters
    rows = [
        [
            words("label.model"),
            words(
                "text.model",
                main=_billions(model.main_parameters),
                mtp=words("text.mtp", count=_billions(mtp)) if mtp else "",
                stored=format_bytes(stored_bytes(model.spec)),
                format=model.native_format,
                kv=format_count(kv_bytes_per_token(model.spec, BFLOAT16, Layout())),
            ),
        ],
        [
            words("label.machine"),
            words(
                "text.machine",
                count=cluster.num_gpus,
                gpu=cluster.gpu.name,
                nodes=cluster.nodes,
                memory=format_bytes(cluster.gpu.memory_bytes),
                share=format_bytes(best.limit_bytes),
            ),
        ],
        [words("label.layout"), layout_text(best, words)],
    ]
    yield from table(rows, indent="")
    yield ""


def layout_text(one: Candidate, words: Words) -> str:
    """A candidate in a line."""
    layout = one.layout
    return words(
        "text.layout",
        tp=layout.tp,
        dp=layout.dp,
        ep=layout.ep,
        pp=layout.pp,
        weights=one.precision.name,
        kv=one.kv.name,
        chunk=format_count(one.working.max_batch_tokens),
    )


def _memory(best: Candidate, words: Words) -> Iterator[str]:
    yield words("label.memory")
    rows = [
        [words.part(line.part), format_bytes(line.num_bytes)]
        for line in best.ledger
        if line.num_bytes
    ]
    total = words("text.sum", limit=format_bytes(best.limit_bytes))
    rows.append([total, format_bytes(total_bytes(best.ledger))])
    yield from table(rows, right=(1,))
    yield ""


def _speed(answer: Answer, words: Words) -> Iterator[str]:
    best, demand = answer.best, answer.asked.demand
    found, model = best.steady, best.model
    assert found is not None
    assert model is not None
    colon = words("text.colon")
    yield (
        words("label.kv")
        + colon
        + words(
            "text.kv",
            tokens=format_count(best.kv_tokens),
            long=format_count(best.users_at(max(1, best.context))),
            context=format_count(best.context),
            short=format_count(best.users_at(demand.request_len)),
            request=format_count(demand.request_len),
        )
    )
    yield (
        words("label.speed")
        + colon
        + words(
            "text.speed",
            users=best.users,
            isl=format_count(demand.input_len),
            osl=format_count(demand.output_len),
            confidence=words(f"text.{_CONFIDENCE[model.confidence]}"),
        )
    )
    rows = []
    for name, seconds, kind in (
        ("ttft", found.ttft_s, "ttft"),
        ("tpot", found.tpot_s, "tpot"),
        ("request", found.request_s, "tpot"),
    ):
        low, high = model.interval("ttft" if kind == "ttft" else "tpot")
        between = words(
            "text.interval", low=format_seconds(low * seconds), high=format_seconds(high * seconds)
        )
        rows.append([words(f"label.{name}"), format_seconds(seconds), between])
    low, high = model.interval("throughput")
    for name, rate in (("output", found.output_per_s), ("total", found.total_per_s)):
        shown, least, most = (_rate(rate * factor) for factor in (1.0, low, high))
        between = words("text.interval", low=least, high=most)
        rows.append([words(f"label.{name}"), words("text.tokens_s", count=shown), between])
    yield from table(rows, right=(1,))
    if answer.most_users is not None:
        yield words("label.users") + colon + _users(answer.most_users, best, words)
    yield ""


def _users(most: int, best: Candidate, words: Words) -> str:
    """With how many users all that was asked is done."""
    if not most:
        return words("text.no_users")
    shown = (">= " if most == MOST_USERS else "") + format_count(most)
    return words("text.users", users=shown, context=format_count(best.context))


def _layouts(answer: Answer, words: Words) -> Iterator[str]:
    yield words("label.layouts")
    weights, tokens, rate = (words(f"label.{one}") for one in ("weights", "tokens", "rate"))
    rows = [["", "TP", "DP", "EP", "PP", weights, "KV", tokens, "TTFT", "TPOT", rate, ""]]
    for at, one in enumerate(answer.candidates[:_MOST_ROWS]):
        layout, found = one.layout, one.steady
        why = words("text.first") if at == 0 and one.fits else lost(words, one, answer.best)
        rows.append(
            [
                str(at + 1),
                *(str(size) for size in (layout.tp, layout.dp, layout.ep, layout.pp)),
                one.precision.name,
                one.kv.name,
                format_count(one.kv_tokens) if one.fits else "-",
                format_seconds(found.ttft_s) if found else "-",
                format_seconds(found.tpot_s) if found else "-",
                _rate(found.output_per_s) if found else "-",
                why,
            ]
        )
    yield from table(rows, right=(0, 1, 2, 3, 4, 7, 8, 9, 10))
    yield ""


def lost(words: Words, one: Candidate, best: Candidate) -> str:
    """Why a candidate is not the first choice."""
    why = why_lost(one, best)
    if why.key == "slower" and dict(why.values)["less"] in ("0%", "-0%"):
        return words("reason.alike")
    return say(words, why)


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B"


def _rate(per_s: float) -> str:
    return format_count(round(per_s))
