"""Compares the counters that the benchmark reads with what Prometheus' client wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from fathom.commands.bench_drafts import draft_results, read_counters


def exposition(drafts: int, drafted: int, accepted: int) -> str:
    registry = CollectorRegistry()
    values = {"drafts": drafts, "draft_tokens": drafted, "accepted_tokens": accepted, "more": 9}
    for name, value in values.items():
        counter = Counter(
            f"vllm:spec_decode_num_{name}", "Help.", ["model_name", "engine"], registry=registry
        )
        counter.labels('a "name"', "0").inc(value - 1)
        counter.labels("other", "1").inc(1)
    return generate_latest(registry).decode()


def test_counters_are_summed_and_compared() -> None:
    before = read_counters(exposition(10, 20, 5))
    after = read_counters(exposition(110, 220, 155))
    assert before == {"num_drafts": 10, "num_draft_tokens": 20, "num_accepted_tokens": 5}
    assert draft_results(before, after) == {
        "spec_decode_acceptance_rate": 75.0,
        "spec_decode_acceptance_length": 2.5,
        "spec_decode_num_drafts": 100,
        "spec_decode_draft_tokens": 200,
        "spec_decode_accepted_tokens": 150,
    }


def test_without_drafts_nothing_is_said() -> None:
    assert read_counters("<html>") == {}
    assert draft_results({}, {}) == {}
    same = read_counters(exposition(10, 20, 5))
    assert draft_results(same, same) == {}
