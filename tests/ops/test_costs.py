"""Compares the cost formulas with sums done by hand, and with the tensors of the case table."""

from __future__ import annotations

import itertools

import pytest
import torch

from fathom.ops.case_inputs import make_inputs
from fathom.ops.cases import TINY_MOE, V3_MLA, AttentionShape, Case, all_cases
from fathom.ops.costs import Cost, cost, expected_experts, visible_keys
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.speed_cases import speed_cases


def test_products() -> None:
    """3 rows, 256 outputs of 512 inputs: 131,072 weights, 3 * (256 + 512) activations."""
    sizes = {"T": 3, "N": 256, "K": 512, "group": 128}

    def found(weights: str, options: dict[str, bool] | None = None) -> Cost:
        return cost(Case("linear", "x", sizes, "bfloat16", weights, options=options))  # type: ignore[arg-type]

    assert found("bfloat16") == Cost(262_144, 4_608, 786_432, "bfloat16")
    assert found("bfloat16", {"norm": True, "residual": True}).activation_bytes == 4_608 + 6_144
    assert found("fp8_block") == Cost(131_072 + 2 * 4 * 4, 4_608, 786_432, "bfloat16")
    assert found("int8") == Cost(131_072 + 256 * 4, 4_608, 786_432, "int8")
    assert found("int4") == Cost(65_536 + 256 * 4 * 3, 4_608, 786_432, "int8")


def test_experts_touch_each_weight_once() -> None:
    """One expert: 3 * 40 * 24 values of 2 bytes; 5 tokens, 3 experts each, one shared of 24."""
    sizes = {"T": 5, "D": 40, "I": 24, "shared": 24}
    case = Case("experts", "x", sizes, "bfloat16", "bfloat16", moe=TINY_MOE)
    found = cost(case, distinct_experts=4)
    assert found.weight_bytes == (4 + 1) * 5_760
    assert found.activation_bytes == 2 * 5 * 40 * 2 + 5 * 3 * 12
    assert found.operations == 5 * (3 + 1) * 6 * 40 * 24
    assert cost(case).weight_bytes == pytest.approx((6 * (1 - 0.5**5) + 1) * 5_760)


def test_expected_experts_is_the_average_over_all_choices() -> None:
    """Two tokens, every pair of sets of 2 of 5."""
    sets = list(itertools.combinations(range(5), 2))
    counts = [len({*first, *second}) for first in sets for second in sets]
    assert expected_experts(5, 2, 2) == pytest.approx(sum(counts) / len(counts))


def test_attention() -> None:
    """Two sequences, 2 heads: contexts of 10 and 6, of which 1 and 3 queries are new."""
    shape = AttentionShape(V3_MLA, (1, 3), (10, 6), 64)
    assert visible_keys(shape) == 10 + (4 + 5 + 6)
    case = Case("mla_attend", "x", {"H": 2}, "bfloat16", "bfloat16", attention=shape)
    found = cost(case)
    up = 2 * (128 + 128) * 512
    assert found.weight_bytes == 2 * (up + 16 * 576)
    assert found.activation_bytes == 2 * 4 * 2 * (192 + 128) + 4 * 64 * 4
    assert found.operations == 2 * 4 * up + 2 * 2 * 25 * (576 + 512)


@pytest.mark.parametrize("op", ["linear", "mlp"])
def test_weight_bytes_are_those_of_the_tensors(op: str) -> None:
    for case in (case for case in all_cases() if case.op == op):
        inputs = make_inputs(case, torch.device("cpu"))
        names = ("weight",) if op == "linear" else ("gate_up", "down")
        held = 0
        for name in names:
            weight = inputs[name]
            tensors = weight.tensors if isinstance(weight, QTensor) else (weight,)
            held += sum(tensor.nbytes for tensor in tensors)
        assert cost(case).weight_bytes == held, case.id


def test_every_case_has_a_cost() -> None:
    ids = []
    for case in (*all_cases(), *speed_cases()):
        found = cost(case)
        assert found.num_bytes > 0, case.id
        assert (found.operations > 0) == (
            case.op in ("linear", "mlp", "experts", "route", "mla_attend")
        )
        ids.append(case.id)
    assert len(ids) == len(set(ids))
