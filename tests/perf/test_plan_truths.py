"""What a plan must get right, against sums worked out by hand and what people have measured: each
line of the requirement is a test."""

from __future__ import annotations

import pytest

from fathom.perf.advise import Claim, Verdict, against, changes, machines, verdict
from fathom.perf.calibration import built_in
from fathom.perf.candidate import Candidate, Demand, Slo
from fathom.perf.held_weights import stored_bytes
from fathom.perf.memory import kv_bytes_per_token
from fathom.perf.price import built_in_prices, month_bill
from fathom.perf.search import search
from fathom.spec.catalogue import builtin_catalogue, parse_cluster
from fathom.spec.formats import BFLOAT16
from fathom.spec.known import find_model
from fathom.spec.parallel import Layout

GIB = 2**30
V3 = find_model("deepseek-v3")


def plan(model: str, gpu: str, **demand: object) -> tuple[Verdict, tuple[Candidate, ...]]:
    asked = Demand(**demand)  # type: ignore[arg-type]
    found = search(find_model(model).spec, parse_cluster(gpu), asked, built_in())
    return verdict(found), found


def test_v3_is_as_large_as_published() -> None:
    assert V3.main_parameters == pytest.approx(671.03e9, rel=1e-5)
    assert V3.mtp_parameters == pytest.approx(11.6e9, rel=1e-3)
    assert stored_bytes(V3.spec) == pytest.approx(641 * GIB, rel=1e-3)
    assert kv_bytes_per_token(V3.spec, BFLOAT16, Layout()) == 70_272


def test_fp8_v3_on_8_h20_96_fits_with_a_short_context() -> None:
    """46k to 119k tokens in all under TP 8, by how much is kept free; a second replica of attention
    has room for more, but the weights that it repeats leave little."""
    said, found = plan("deepseek-v3", "8xH20-96")
    assert said == "limited"
    best = next(one for one in found if one.layout == Layout(tp=8))
    assert best.precision.name == "fp8"
    assert 46_000 <= best.kv_tokens <= 119_000
    assert 0 < best.context < V3.spec.max_position
    said, found = plan("deepseek-v3", "8xH20-96", context=128_000)
    assert said == "limited"
    assert found[0].shortfalls[0].key == "context"


def test_dp_attention_multiplies_the_cache_where_there_is_room() -> None:
    _, found = plan("deepseek-v3", "8xH200", weights="fp8", kv="bf16")
    tokens = {one.layout: one.kv_tokens for one in found}
    assert tokens[Layout(tp=4, dp=2, ep=8)] > 1.5 * tokens[Layout(tp=8, ep=8)]


@pytest.mark.parametrize(
    ("model", "gpu", "demand", "wanted"),
    [
        ("deepseek-v3", "8xH20-141", {"context": 128_000}, "yes"),
        ("deepseek-v3", "8xH200", {"context": 128_000}, "yes"),
        ("deepseek-v3", "8xH100-80", {"weights": "fp8"}, "no"),
        ("deepseek-v3", "8xH100-80", {}, "other"),
        ("deepseek-v3", "16xH100-80", {}, "yes"),
        ("deepseek-v3", "4xRTX6000-Ada", {}, "no"),
        ("deepseek-v3", "16xA100-80", {"weights": "bf16"}, "no"),
        ("deepseek-v3", "24xA800-80", {"weights": "bf16"}, "yes"),
        ("deepseek-v3", "32xA100-80", {}, "yes"),
        ("deepseek-v3", "8xA100-80", {"weights": "int8"}, "no"),
        ("deepseek-v3", "16xA800-80", {"weights": "int8"}, "yes"),
        ("deepseek-v3", "8xA100-80", {"weights": "int4"}, "yes"),
        ("deepseek-v3", "4xA100-80", {"weights": "int4"}, "no"),
        ("deepseek-coder-33b", "4xL40S", {"weights": "bf16"}, "yes"),
        ("deepseek-coder-33b", "4xRTX6000-Ada", {}, "yes"),
        ("deepseek-coder-33b", "1xRTX4090", {"weights": "int4"}, "yes"),
    ],
)
def test_what_fits_and_what_does_not(
    model: str, gpu: str, demand: dict[str, object], wanted: Verdict
) -> None:
    assert plan(model, gpu, **demand)[0] == wanted


@pytest.mark.parametrize("gpu", ["4xRTX6000-Ada", "8xH100-80", "16xA100-80"])
def test_the_nearest_that_is_named_does_what_was_asked(gpu: str) -> None:
    _, found = plan("deepseek-v3", gpu)
    told = changes(V3.spec, parse_cluster(gpu), Demand(), found, builtin_catalogue(), built_in())
    named = [
        dict(one.values)["machine"] for one in told if one.key in ("change_more", "change_gpu")
    ]
    assert len(named) == 2
    for machine in named:
        assert plan("deepseek-v3", machine)[0] == "yes"


def test_the_claim_of_127_requests_a_second_in_68_ms_is_refused() -> None:
    cluster = parse_cluster("8xH100-80")
    _, found = plan("deepseek-v3", "8xH100-80")
    claim = Claim(per_s=127, input_len=512, mean_s=0.068)
    keys = [one.key for one in against(claim, V3.spec, cluster, found, built_in())]
    assert keys == ["claim_memory", "claim_answer", "claim_load"]
    answered = Claim(per_s=127, input_len=512, output_len=512, mean_s=0.068)
    keys = [one.key for one in against(answered, V3.spec, cluster, found, built_in())]
    assert "claim_floor" in keys


def test_a_claim_that_may_be_so_is_not_refused() -> None:
    cluster = parse_cluster("8xH200")
    _, found = plan("deepseek-v3", "8xH200")
    claim = Claim(per_s=1, input_len=1000, output_len=100, mean_s=20)
    assert not list(against(claim, V3.spec, cluster, found, built_in()))


def test_15_000_million_tokens_at_2_94_are_44_100() -> None:
    assert month_bill(15_000e6, 2.94) == pytest.approx(44_100)


def test_the_cheapest_machines_come_first_and_meet_the_slo() -> None:
    demand = Demand(slo=Slo(tpot_s=0.05), context=32_000)
    found = machines(V3.spec, demand, builtin_catalogue(), built_in(), built_in_prices(), "USD")
    hours = [one.hour for one in found if one.hour is not None]
    assert hours == sorted(hours)
    assert len(hours) < len(found)  # H20s have no known price, and come last
    assert any(one.cluster.gpu.id == "h20-3e-141" for one in found[len(hours) :])
    for one in found:
        assert one.best.steady is not None
        assert one.best.steady.tpot_s <= 0.05
        assert one.best.context == 32_000
