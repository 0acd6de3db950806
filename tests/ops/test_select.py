"""Checks the choice of backends against the rule that it states, with made-up candidates."""

from __future__ import annotations

import pytest

from fathom.errors import ConfigError
from fathom.ops.api import Backend
from fathom.ops.reference import ReferenceBackend
from fathom.ops.select import CANDIDATES, Candidate, Need, Support, needs_of, select_backends
from fathom.spec.deepseek import parse_config


class Fast(ReferenceBackend):
    name = "fast"


def fast_supports(need: Need) -> Support:
    if need.op not in ("mla_attend", "mla_write", "linear", "mlp", "experts"):
        return Support(0, "not implemented")
    if need.weights == "fp8_block":
        return Support(0, "no FP8 kernel")
    return Support(10, "fused")


FAST = Candidate("fast", fast_supports, Fast)
REFERENCE = next(candidate for candidate in CANDIDATES if candidate.name == "reference")
BOTH = (REFERENCE, FAST)


def only_linear_supports(need: Need) -> Support:
    return Support(10 if need.op == "linear" else 0, "products alone")


def needs(weights: str = "bfloat16") -> tuple[Need, ...]:
    config = {"architectures": ["DeepseekV3ForCausalLM"]}
    if weights == "fp8_block":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
        }
    return needs_of(parse_config(config), device="cpu", dtype="bfloat16", is_quantized=True)


def owner(method: object) -> Backend:
    return method.__self__  # type: ignore[attr-defined]


def test_reference_meets_every_need() -> None:
    selection = select_backends(needs("fp8_block"), candidates=[REFERENCE])
    assert selection.ops.name == "reference"
    assert {choice.backend for choice in selection.choices} == {"reference"}
    assert {choice.need.weights for choice in selection.choices} == {"bfloat16", "fp8_block"}
    assert all(choice.reason for choice in selection.choices)


def test_best_score_wins_op_by_op_and_bound_ops_go_together() -> None:
    ops = select_backends(needs(), candidates=BOTH).ops
    assert ops.name == "reference+fast"
    for method in (ops.linear, ops.hold, ops.experts, ops.mla_attend, ops.mla_plan, ops.mla_write):
        assert owner(method).name == "fast"
    assert owner(ops.route).name == "reference"
    every_op = {name for name in vars(Backend) if not name.startswith("_")} - {"name"}
    assert all(hasattr(ops, name) for name in every_op)


def test_ops_that_share_weights_are_not_parted() -> None:
    """A backend that packs weights for `linear` alone must not be handed the others' weights."""
    part = Candidate("part", only_linear_supports, Fast)
    selection = select_backends(needs(), candidates=(REFERENCE, part))
    assert {choice.backend for choice in selection.choices} == {"reference"}


def test_what_a_backend_lacks_goes_to_another() -> None:
    selection = select_backends(needs("fp8_block"), candidates=BOTH)
    backends = {choice.need.op: choice.backend for choice in selection.choices}
    assert (backends["linear"], backends["mla_attend"]) == ("reference", "fast")


def test_forced_backend_is_used_or_refused() -> None:
    assert select_backends(needs(), forced="reference", candidates=BOTH).ops.name == "reference"
    with pytest.raises(ConfigError, match=r"op embed .* fast: not implemented; .* do not force"):
        select_backends(needs(), forced="fast", candidates=BOTH)


def test_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="found: quick; wanted: one of reference, fast"):
        select_backends(needs(), forced="quick", candidates=BOTH)


def test_a_need_that_nothing_meets_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no FP8 kernel"):
        select_backends([Need("linear", "cpu", "bfloat16", "fp8_block")], candidates=[FAST])
