"""Reference ops of the mixture of experts: routing, and the experts grouped by expert."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.model import Moe

Weight = torch.Tensor | QTensor


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Backend.route`.

    Experts outside the chosen groups are masked with -inf, as DeepSeek's own code does; a mask of
    0 would let them win over a chosen group's experts whose biased score is negative.
    """
    logits = torch.nn.functional.linear(x.float(), weight.float())
    scores = logits.softmax(dim=-1) if moe.scoring == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if moe.method != "greedy" and moe.num_groups > 1:
        choice = _limit_groups(choice, moe)
    # Stable sorting instead of topk, which leaves the order of equal scores open.
    order = choice.sort(dim=-1, descending=True, stable=True).indices
    ids = order[:, : moe.experts_per_token]
    weights = scores.gather(1, ids)
    if moe.normalize_weights:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return ids, weights * moe.routed_scale


def _limit_groups(choice: torch.Tensor, moe: Moe) -> torch.Tensor:
    """`choice` [T, E] with -inf for the experts outside each token's best groups."""
    grouped = choice.view(choice.shape[0], moe.num_groups, -1)
    if moe.method == "noaux_tc":
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
    else:
        group_scores = grouped.amax(dim=-1)
    order = group_scores.sort(dim=-1, descending=True, stable=True).indices
    is_outside = torch.ones_like(group_scores, dtype=torch.bool)
    is_outside.scatter_(1, order[:, : moe.groups_per_token], False)
    return grouped.masked_fill(is_outside[:, :, None], float("-inf")).flatten(1)


def experts(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    mlp: Callable[[torch.Tensor, Weight, Weight], torch.Tensor],
) -> torch.Tensor:
    """See `Backend.experts`. One pass for each expert that any token chose.

    Cost: T * k rows of D kept until the sum, so that its order does not depend on the other tokens;
    one transfer of the E counts to the host.
    """
    num_tokens, num_slots = expert_ids.shape
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    rows = x[order // num_slots]
    counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    outputs = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            part = slice(start, start + count)
            outputs[part] = mlp(rows[part], gate_up[expert], down[expert])
            start += count
    by_slot = torch.empty_like(outputs)
    by_slot[order] = outputs
    by_slot = by_slot.view(num_tokens, num_slots, -1)
    total = torch.bmm(expert_weights[:, None].float(), by_slot.float()).squeeze(1)
    return total.to(x.dtype)
