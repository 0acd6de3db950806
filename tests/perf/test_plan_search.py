"""Plans against what must hold for all of them: more asked never takes less, faster hardware is
never slower, and nothing is above its roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.perf.calibration import built_in
from fathom.perf.candidate import Candidate, Demand, Slo, candidate, predicted
from fathom.perf.memory import total_bytes
from fathom.perf.precision import caches, precisions
from fathom.perf.search import layouts, search, why_lost
from fathom.perf.shape import decode_shape
from fathom.perf.users import MOST_USERS, most_users
from fathom.spec.catalogue import parse_cluster
from fathom.spec.hardware import Cluster
from fathom.spec.known import find_model
from fathom.spec.parallel import Layout

V3, LITE = find_model("deepseek-v3").spec, find_model("V2-Lite").spec
CASES = st.sampled_from(
    [
        (V3, "8xH200", Layout(tp=8)),
        (V3, "8xH20-141", Layout(tp=4, dp=2, ep=8)),
        (V3, "16xH100-80", Layout(tp=8, ep=8, pp=2)),
        (LITE, "4xL40S", Layout(tp=4)),
        (LITE, "2xA100-80", Layout(dp=2, ep=2)),
    ]
)
few = settings(max_examples=40, deadline=None)


def one_of(
    case: tuple[object, str, Layout], demand: Demand, cluster: Cluster | None = None
) -> Candidate:
    model, gpu, layout = case
    cluster = cluster or parse_cluster(gpu)
    precision = precisions(model, cluster, None)[0]  # type: ignore[arg-type]
    found = candidate(model, cluster, demand, layout, precision, caches(model, "bf16")[0])  # type: ignore[arg-type]
    return predicted(found, cluster, demand, built_in())


@few
@given(CASES, st.integers(1, 200), st.integers(0, 200))
def test_more_users_never_need_less_cache(
    case: tuple[object, str, Layout], users: int, more: int
) -> None:
    """And those that the pools hold are counted in whole requests."""
    low, high = (one_of(case, Demand(context=4096, users=n)) for n in (users, users + more))
    assert high.needed_kv_bytes >= low.needed_kv_bytes
    misses = ["users" in [one.key for one in found.shortfalls] for found in (low, high)]
    assert misses[0] <= misses[1]


@few
@given(CASES, st.integers(4096, 60_000), st.integers(0, 60_000))
def test_more_context_never_takes_fewer_bytes(
    case: tuple[object, str, Layout], context: int, more: int
) -> None:
    low, high = (one_of(case, Demand(context=n)) for n in (context, context + more))
    assert high.needed_bytes >= low.needed_bytes
    assert high.users_at(context + more) <= low.users_at(context) or low.context < context


@few
@given(CASES, st.floats(1.0, 4.0), st.integers(1, 64))
def test_more_bandwidth_is_never_slower(
    case: tuple[object, str, Layout], factor: float, users: int
) -> None:
    cluster = parse_cluster(case[1])
    gpu = replace(cluster.gpu, bandwidth_bytes_s=cluster.gpu.bandwidth_bytes_s * factor)
    demand = Demand(context=4096, users=users)
    slow, fast = one_of(case, demand), one_of(case, demand, replace(cluster, gpu=gpu))
    assert slow.steady is not None
    assert fast.steady is not None
    assert fast.steady.tpot_s <= slow.steady.tpot_s * (1 + 1e-3)
    assert fast.steady.output_per_s >= slow.steady.output_per_s * (1 - 1e-3)


@few
@given(CASES, st.integers(1, 64), st.integers(100, 4000), st.integers(2, 1000))
def test_nothing_is_above_its_roofline(
    case: tuple[object, str, Layout], users: int, input_len: int, output_len: int
) -> None:
    demand = Demand(context=8192, users=users, input_len=input_len, output_len=output_len)
    found = one_of(case, demand)
    assert found.steady is not None
    assert found.model is not None
    # What one sequence takes alone, its whole pipeline to itself, nobody can be below.
    assert found.steady.tpot_s >= found.model.roofline_s(decode_shape(1, input_len))
    after_first = found.steady.requests_per_s * max(1, output_len - 1)
    assert after_first * found.steady.tpot_s <= users * (1 + 1e-6)
    # Two operations for each active parameter and token: 37 billion in V3, 2.4 in V2-Lite.
    cluster, active = parse_cluster(case[1]), 37e9 if case[0] is V3 else 2.4e9
    peak = cluster.gpu.fp8_flops or cluster.gpu.bf16_flops
    assert found.steady.total_per_s * 2 * active <= cluster.num_gpus * peak


def test_every_candidate_says_why_it_lost_and_none_is_better_than_the_first() -> None:
    for gpu in ("8xH20-96", "8xH100-80", "8xH200"):
        found = search(V3, parse_cluster(gpu), Demand(), built_in())
        best = found[0]
        for one in found[1:]:
            assert one.rank_key >= best.rank_key
            assert why_lost(one, best).key in {
                "over", "inexact", "inexact_kv", "short", "slower", "context", "users",
            }  # fmt: skip
        for one in found:
            assert total_bytes(one.ledger) <= one.limit_bytes or not one.fits
            assert one.layout.world_size == 8


def test_layouts_divide_the_model_and_use_every_gpu() -> None:
    for gpu in ("8xH200", "16xH100-80", "24xA100-80", "6xL40S"):
        cluster = parse_cluster(gpu)
        found = list(layouts(V3, cluster))
        assert found
        assert len(set(found)) == len(found)
        assert all(one.world_size == cluster.num_gpus for one in found)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(tp=3), "heads"),
        (Layout(tp=4), "a rank for each GPU"),
        (Layout(tp=8, ep=3), "divides the 8 ranks"),
        (Layout(pp=80), "at most 61 stages"),
    ],
)
def test_an_impossible_layout_is_refused_with_the_reason(layout: Layout, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search(V3, parse_cluster("8xH200"), Demand(layout=layout), built_in())
    assert words in f"{caught.value.found} {caught.value.wanted}"


def test_formats_that_a_gpu_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights in fp8"):
        search(V3, parse_cluster("8xA100-80"), Demand(weights="fp8"), built_in())


def test_an_slo_that_is_missed_is_named() -> None:
    demand = Demand(slo=Slo(ttft_s=1e-6, tpot_s=1e-6, e2e_s=1e-6))
    found = search(V3, parse_cluster("8xH200"), demand, built_in())[0]
    assert [one.key for one in found.shortfalls] == ["ttft", "tpot", "e2e"]


@few
@given(CASES, st.floats(0.02, 0.2), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_a_milder_limit_and_a_faster_memory_never_hold_fewer_users(
    case: tuple[object, str, Layout], tpot_s: float, milder: float, faster: float
) -> None:
    """And with the number that is told, all is done that was asked, and not with one more."""
    cluster, demand = parse_cluster(case[1]), Demand(context=4096, slo=Slo(tpot_s=tpot_s))
    mild = replace(demand, slo=Slo(tpot_s=tpot_s * milder))
    gpu = replace(cluster.gpu, bandwidth_bytes_s=cluster.gpu.bandwidth_bytes_s * faster)
    fast = replace(cluster, gpu=gpu)
    most, more, most_fast = (
        most_users((one_of(case, asked, machine),), machine, asked, built_in())
        for asked, machine in ((demand, cluster), (mild, cluster), (demand, fast))
    )
    assert most <= more
    assert most <= most_fast * 1.01 + 1
    for users in (most, most + 1):
        one = one_of(case, replace(demand, users=max(1, users)), cluster)
        assert one.does_all == (0 < users <= most) or most == MOST_USERS


def test_a_layout_with_room_for_the_longest_sequence_comes_first() -> None:
    """A machine was named as one that does what is asked, and its own plan then said that it falls
    short: of the faster layout that has less room."""
    found = search(V3, parse_cluster("4xMI300X-192"), Demand(), built_in())
    held = [one for one in found if one.precision.is_exact and one.is_exact_kv and one.fits]
    assert not found[0].is_short
    fastest = max((one for one in held if one.is_short), key=lambda one: one.output_per_s)
    assert why_lost(fastest, found[0]).key == "short"


def test_gpus_that_no_layout_divides_the_model_over() -> None:
    with pytest.raises(ConfigError, match="no layout divides"):
        search(V3, parse_cluster("10007xH200"), Demand(), built_in())
