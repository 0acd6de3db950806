"""Compares the peers benchmark's arithmetic with fathom's parameter table and with sums by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.peers.cases import MIXED, OFFLINE, PREFIX, decode_rate, mixed_requests, prefix_requests
from bench.peers.checkpoint import Shape, config_of
from bench.peers.client import percentile
from bench.peers.compare import compare, position_distance
from bench.peers.measure import Lead, Results
from bench.peers.report import BEGIN, END, ratio, render, update_document
from bench.peers.roofline import BYTES_A_WEIGHT, ceiling, work_of
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import parameter_table

CONFIG = config_of(Shape())


def _sample(peer: str, case: str, value: float, number: int = 0) -> dict[str, Any]:
    seen = {"steal": 0.01, "load": 0.5, "roofline": 0, "round": number}
    return {"peer": peer, "case": case, "value": value, **seen}


@pytest.fixture
def report() -> dict[str, Any]:
    """Results as a run records them: two modes of one peer, one that failed, and fathom."""
    output = {"distance_nats": 2.3, "shared_of_20": 2.0, "top_1_agreement": 0.1, "differs": True}
    fast = "decode batch 1"
    return {
        "started": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**34, "features": ["avx2"]},
        "config": {"threads": 2, "repeats": 3, "model": CONFIG},
        "done": ["outputs", *(f"offline bf16 {number}" for number in range(3)), "HTTP bf16 0"],
        "rooflines": [
            {"unit": "AVX2 f32", "best_bandwidth_bytes_per_s": 1e10, "best_peak_flops_per_s": 1e11}
        ],
        "peers": {
            "other eager": {"engine": "other", "format": "bf16", "output": output},
            "other compiled": {"engine": "other", "format": "bf16", "versions": {"other": "1.2"}},
            "broken": {"engine": "broken", "format": "bf16", "error": "it cannot be installed"},
            "fathom bf16": {"engine": "fathom", "format": "bf16"},
        },
        "samples": [
            *(_sample("other eager", fast, value) for value in (9.0, 10.0, 14.0)),
            *(_sample("other compiled", fast, value) for value in (7.0, 8.0)),
            *(_sample("fathom bf16", fast, value) for value in (14.0, 15.0, 40.0)),
            _sample("other eager", PREFIX, 30.0),
            _sample("other compiled", PREFIX, 20.0),
            _sample("fathom bf16", PREFIX, 10.0),
            {"peer": "other eager", "case": MIXED, "round": 0, "error": "it fell over"},
        ],
    }


def test_weights_of_the_roofline_are_those_of_the_parameter_table() -> None:
    """Norms and the embedding are not read, or hardly; everything else is a matrix of the table."""
    work = work_of(CONFIG)
    rows = [row for row in parameter_table(parse_config(CONFIG)) if len(row.shape) == 2]
    experts = sum(row.num_elements for row in rows if row.expert is not None)
    others = sum(row.num_elements for row in rows if row.expert is None and row.role != "embed")
    assert work.dense_weights == others
    assert work.expert_weights * work.num_experts * work.num_moe_layers == experts


def test_bytes_of_a_step_are_those_of_an_independent_count() -> None:
    """551 MB a token at a context of 192, KV of 13.8 kB a token, 8 / 42 / 63.1 experts at batch
    1 / 8 / 32: counted for this model with another tool, norms included."""
    work = work_of(CONFIG)
    assert work.step_bytes(1, 192, 2.0) == pytest.approx(551e6, rel=0.01)
    assert work.kv_numbers_a_token * 2 == pytest.approx(13.8e3, rel=0.01)
    layer = work.expert_weights * work.num_moe_layers
    for batch, experts in ((1, 8), (8, 42), (32, 63.1)):
        read = work.step_bytes(batch, 0, 1.0) - work.dense_weights
        assert read / layer == pytest.approx(experts, rel=0.01)


def test_ceilings_by_hand() -> None:
    """At 17 GB/s: 31 / 78 / 214 tokens/s in bfloat16 at batch 1 / 8 / 32, by the same count."""
    work = work_of(CONFIG)
    decodes = [case for case in OFFLINE if case.kind == "decode"]
    for case, wanted in zip(decodes, (31, 78, 214), strict=True):
        assert ceiling(work, case, "bf16", bandwidth=17e9, peak=1.0) == pytest.approx(
            wanted, rel=0.02
        )
    prefill = OFFLINE[0]
    flops = work.prefill_flops(512)
    assert ceiling(work, prefill, "int4", bandwidth=1.0, peak=2 * flops) == pytest.approx(1024)
    assert BYTES_A_WEIGHT["int4"] * 32 == 16 + 2


def test_prefill_operations_by_hand() -> None:
    """Two tokens: twice the body, once the head, three pairs in each layer's attention."""
    work = work_of(CONFIG)
    body = work.dense_weights - 32000 * 1024 + 11 * 8 * work.expert_weights
    pairs = 3 * 12 * 16 * (192 + 128)
    assert work.prefill_flops(2) == 2 * (2 * body + 32000 * 1024 + pairs)


def test_rates_and_percentiles_by_hand() -> None:
    wire = {"batch": 8, "new_tokens": 128}
    assert decode_rate(wire, 5.0, 1.0) == 8 * 127 / 4
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
    assert percentile([], 0.5) == 0.0


def test_distance_counts_what_a_peer_does_not_list_as_its_lowest() -> None:
    reference = [[5, -1.0], [6, -2.0], [7, -4.0]]
    peer = [[6, -1.5], [5, -1.75], [9, -3.0]]
    distance, shared, same = position_distance(reference, peer)
    assert distance == pytest.approx((0.75 + 0.5 + 1.0) / 3)
    assert (shared, same) == (2, False)


def test_a_peer_that_repeats_the_reference_does_not_differ() -> None:
    top = [[5, -1.0], [6, -2.0]]
    answers = [{"tokens": [5, 5], "top": [top, top]}]
    found = compare([[1, 2]], answers, lambda prompt, tokens: [top, top])
    assert (found["distance_nats"], found["top_1_agreement"], found["differs"]) == (0.0, 1.0, False)


def test_loads_are_what_they_are_called() -> None:
    requests = mixed_requests(3, 32000)
    assert len(requests) == 64
    assert all(64 <= len(ids) <= 512 and 16 <= new <= 128 for ids, new in requests)
    again = mixed_requests(4, 32000)
    assert [len(ids) for ids, _ in requests] == [len(ids) for ids, _ in again]
    assert requests[0][0] != again[0][0]
    shared = {tuple(ids[:1024]) for ids, _ in prefix_requests(3, 32000)}
    assert len(shared) == 1


def test_ratio_is_to_the_better_mode_of_the_best_peer(report: dict[str, Any]) -> None:
    assert ratio(report, "fathom bf16", "decode batch 1") == (1.5, "other eager")
    assert ratio(report, "fathom bf16", PREFIX) == (2.0, "other compiled")
    assert ratio(report, "fathom bf16", MIXED) is None


def test_a_leader_led_in_every_round() -> None:
    results = Results()
    for number, (mixed, prefix) in enumerate(((50.0, 10.0), (60.0, 12.0))):
        assert not results.leader("slow", ["fast"], MIXED, Lead(1.15, 2))
        for name, factor in (("slow", 1.0), ("fast", 1.2), ("alike", 1.1)):
            for case, value in ((MIXED, mixed * factor), (PREFIX, prefix / factor)):
                results.record(name, number, case, {"value": value})
    for case in (MIXED, PREFIX):
        assert results.leader("slow", ["alike", "fast"], case, Lead(1.15, 2)) == "fast"
        assert not results.leader("alike", ["slow", "fast"], case, Lead(1.15, 2))
        assert not results.leader("fast", ["slow", "alike"], case, Lead(1.15, 2))


def test_table_names_every_failure_and_difference(report: dict[str, Any]) -> None:
    text = render(report)
    assert "| other eager ≠ |" in text
    assert "| other compiled |" in text
    assert "broken was not measured: it cannot be installed" in text
    assert f"other eager failed at {MIXED}: it fell over" in text
    # 551 MB at 10 GB/s allow 18.2 tokens/s.
    assert "15 (14 to 40), 83%" in text


def test_document_is_replaced_between_its_marks(report: dict[str, Any], tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    update_document(document, json.loads(json.dumps(report)))
    once = document.read_text(encoding="utf-8")
    assert once.startswith("# Title\n\nbefore\n\n")
    assert once.endswith(f"{END}\n\nafter\n")
    assert "old" not in once
    update_document(document, report)
    assert document.read_text(encoding="utf-8") == once
