"""From a step plan to the shape that its time depends on; and the simplest time there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.core.types import StepPlan
from fathom.perf.shape import StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTime:
    """`submit_s` of the host to plan and submit a step; on the device `step_s` whatever is in it,
    and `token_s` more for each position computed."""

    submit_s: float = 0.001
    step_s: float = 0.02
    token_s: float = 0.00001

    def device_s(self, shape: StepShape) -> float:
        """Seconds of the device."""
        return self.step_s + self.token_s * shape.num_tokens

    def host_s(self, shape: StepShape) -> float:
        """Seconds of the host."""
        return self.submit_s


def plan_shape(plan: StepPlan) -> StepShape:
    """The shape of one scheduler's step. An entry of one token that samples continues an answer."""
    decodes = drafts = decode_kv = decode_pairs = 0
    prefills = sampled = tokens = kv = pairs = 0
    for _, start, new_tokens, _, samples, proposed, _, _ in plan.entries:
        if samples and (new_tokens is None or len(new_tokens) == 1):
            decodes += 1
            decode_kv += start + 1
            if proposed:
                drafts += len(proposed)
                decode_kv += len(proposed)
                decode_pairs += len(proposed) * (start + 1) + _triangle(len(proposed))
            continue
        count = 1 if new_tokens is None else len(new_tokens)
        prefills += 1
        sampled += samples
        tokens += count
        kv += start + count
        pairs += count * start + _triangle(count)
    return StepShape(
        num_tokens=decodes + drafts + tokens,
        num_sequences=decodes + prefills,
        decode_sequences=decodes,
        kv_tokens=decode_kv + kv,
        # The first position of each sees the context that is read, less the drafts behind it.
        query_key_pairs=decode_kv - drafts + decode_pairs + pairs,
        num_sampled=decodes + drafts + sampled,
        prefill_tokens=tokens,
        prefill_kv_tokens=kv,
        prefill_pairs=pairs,
    )


def _triangle(count: int) -> int:
    return count * (count + 1) // 2


def lock_step(shapes: Sequence[StepShape]) -> StepShape:
    """The step that the groups of DP attention take together, from each one's part (idle ones have
    a shape of zeros).

    Experts see the tokens of all groups, so that those add up. Attention is done when the fullest
    group has done its part: it takes as long as if all busy groups were as full.
    """
    if len(shapes) == 1:
        return shapes[0]
    sequences = sum(one.num_sequences for one in shapes)
    decodes = sum(one.decode_sequences for one in shapes)
    busy = min(len(shapes), decodes)
    kv = busy * max(one.kv_tokens - one.prefill_kv_tokens for one in shapes)
    pairs = busy * max(one.query_key_pairs - one.prefill_pairs for one in shapes)
    busy = min(len(shapes), sequences - decodes)
    prefill_kv = busy * max(one.prefill_kv_tokens for one in shapes)
    prefill_pairs = busy * max(one.prefill_pairs for one in shapes)
    return StepShape(
        num_tokens=sum(one.num_tokens for one in shapes),
        num_sequences=sequences,
        decode_sequences=decodes,
        kv_tokens=kv + prefill_kv,
        query_key_pairs=pairs + prefill_pairs,
        num_sampled=sum(one.num_sampled for one in shapes),
        prefill_tokens=sum(one.prefill_tokens for one in shapes),
        prefill_kv_tokens=prefill_kv,
        prefill_pairs=prefill_pairs,
    )
