"""What a deployment does in the long run under a closed loop of users: time to first token, time
per output token, throughput. Arithmetic over a cost model, where `simulate` runs the scheduler.

Users are asked anew as soon as they are answered. Prompts queue at one server, the prefill, and
answers go on beside it: a closed network of a queue and a delay. Groups of DP attention are one
server that computes several prompts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, expm1, inf, sqrt
from typing import NamedTuple

from fathom.errors import ConfigError
from fathom.perf.cost import CostModel
from fathom.perf.shape import StepShape, decode_shape, joined, prefill_shape

_ROUNDS, _QUEUE_ROUNDS = 40, 100
_CLOSE = 1e-4
_MOST_COUNTED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Users at a time, and mean lengths in tokens. `cached_len`: of a prompt, found in the prefix
    cache. `chunk_len`: the most positions of a step. `kv_tokens`: latents that fit all pools.
    `requests_each`: that a user asks before the measurement ends, where all start at once: the
    first wait behind each other. `accepted`: tokens of a step and sequence, above 1 with
    `num_drafts`."""

    concurrency: int
    input_len: float
    output_len: float
    cached_len: float = 0.0
    chunk_len: int = 8192
    kv_tokens: float = inf
    requests_each: float = inf
    prompts_apart: bool = False
    num_drafts: int = 0
    accepted: float = 1.0

    def __post_init__(self) -> None:
        held = self.input_len + self.output_len
        if self.concurrency < 1 or self.output_len < 1 or not 0 <= self.cached_len < self.input_len:
            raise ConfigError("load", found=str(self), wanted="1 user and 1 token or more")
        if self.kv_tokens < held:
            raise ConfigError(
                "KV cache", found=f"{self.kv_tokens:.0f} tokens", wanted=f"{held:.0f} for a request"
            )

    @property
    def computed_len(self) -> float:
        """Positions of a prompt that are computed."""
        return self.input_len - self.cached_len


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Means. `batch`: sequences that decode in a step; `running` users are served and the others
    wait for room in the KV pools; `prefill_share`: of the time, spent on prompts.

    Of the time to a first token, `prompt_s` is for the prompt alone, `shared_s` for what others
    decode in the same steps, and `ahead_s` until steps end that were planned before it came. The
    rest are `first_token_s` of the calibration, and waiting for others' prompts and for room."""

    ttft_s: float
    prompt_s: float
    shared_s: float
    ahead_s: float
    tpot_s: float
    request_s: float
    output_per_s: float
    total_per_s: float
    requests_per_s: float
    batch: float
    running: float
    prefill_share: float
    step_s: float


def steady(model: CostModel, load: Load) -> Steady:
    """The long run of `load` on the deployment that `model` predicts."""
    # A sequence holds its prompt and, on average, half of its answer.
    held = load.input_len + load.output_len / 2
    users = min(float(load.concurrency), max(1.0, load.kv_tokens / held))
    estimate = _Estimate(model, load, users)
    found = estimate.solve()
    waiting_s = (load.concurrency - users) / found.requests_per_s
    request_s = found.request_s + waiting_s
    return replace(found, ttft_s=found.ttft_s + waiting_s, request_s=request_s)


class _First(NamedTuple):
    """Parts of the time to a first token, as `Steady` has them."""

    prompt_s: float
    shared_s: float
    ahead_s: float


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The search for a batch and an answer's time that agree with each other."""

    model: CostModel
    load: Load
    users: float

    def solve(self) -> Steady:
        load, batch = self.load, self.users
        groups, pp = self.model.layout.dp, self.model.layout.pp
        share, together, stalled, found = 1.0, 1.0, 1.0, None
        alone_s, _ = self._prompts(0.0, 1)
        for _ in range(_ROUNDS):
            step_s, prompt_s = self._step_s(batch), stalled * self._prompt_s(batch / pp, together)
            first = self._first(alone_s, step_s, share, together)
            queue_s, cycle_s = self._queue(step_s, prompt_s, first)
            answer_s = cycle_s - queue_s
            share = answer_s / cycle_s
            made = self._made(step_s, prompt_s, first, queue_s, answer_s)
            waiting = float(round((queue_s - first.ahead_s) * self.users / cycle_s / pp))
            if groups > 1:
                # No queue for one server: each group takes up at once what came in a step, and all
                # their steps last as long. Of steps into which any prompt comes: how many come, and
                # over how many groups they are spread.
                coming = made.requests_per_s * (step_s + together * prompt_s)
                waiting = groups * (1 - (1 - 1 / groups) ** (coming / -expm1(-coming)))
            most = max(1, int(load.chunk_len // load.computed_len))
            together = max(1.0, min(waiting, most * groups))
            if pp > 1:
                # Steps in the stages wait for the longest of them: for that into which most of the
                # prompts came while each was computed once.
                busy = min(0.99, made.requests_per_s * prompt_s)
                came = made.requests_per_s * step_s / (1 - busy)
                stalled = max(1 / pp, _largest(came / pp, pp) / came)
            decoding = min(self.users, max(1.0, made.requests_per_s * answer_s))
            if found is not None and abs(decoding - batch) < _CLOSE * batch:
                break
            found, batch = made, (batch + decoding) / 2
        return made

    def _step_s(self, batch: float) -> float:
        """Seconds between two steps of one sequence where no prompt is computed."""
        # Each stage of a pipeline works on a part of the batch. Between whole batches: a line.
        share = max(1.0, batch / self.model.layout.pp)
        low = int(share)
        below = self._time_s(self._decoding(low))
        if low == share:
            return below
        return below + (share - low) * (self._time_s(self._decoding(low + 1)) - below)

    def _first(self, alone_s: float, step_s: float, share: float, together: float) -> _First:
        """What a prompt takes that waits for no other. Each user decodes for a `share` of the time.

        The step that runs when it comes is half done on average; the next one is planned, where
        anyone in the first goes on after it (in a pipeline nobody can); and its own ones compute
        what others decode too, and the prompts of other groups. Engines that keep prompts apart
        take them up after the step that runs.
        """
        others, steps, pp = self.users - 1, max(1.0, self._steps), self.model.layout.pp
        any_decodes = 1 - (1 - share) ** others
        if self.load.prompts_apart:
            return _First(alone_s, 0.0, any_decodes * step_s / 2)
        at_once = round(together) if self.model.layout.dp > 1 else 1
        whole_s, _ = self._prompts(max(1.0, share * others / pp), at_once)
        any_goes_on = 1 - (1 - share * (steps - 1) / steps) ** others if pp == 1 else 0.0
        ahead_s = (any_decodes / 2 + any_goes_on) * step_s / pp
        return _First(alone_s, any_decodes * (whole_s - alone_s), ahead_s)

    def _prompt_s(self, batch: float, together: float) -> float:
        """Seconds that a prompt adds, of `together` computed at once; with its own part in it
        where decoding sequences share its steps."""
        low = int(together)
        total_s = self._added_s(batch, low)
        if together > low:
            total_s += (together - low) * (self._added_s(batch, low + 1) - total_s)
        return total_s / together

    def _added_s(self, batch: float, together: int) -> float:
        if self.load.prompts_apart:
            return self._prompts(0.0, together)[0]
        whole_s, count = self._prompts(batch, together)
        return whole_s - count * self._time_s(self._decoding(batch))

    def _prompts(self, batch: float, together: int) -> tuple[float, int]:
        """Seconds of the steps that compute `together` prompts at once while `batch` sequences
        decode, and how many steps there are."""
        load, groups = self.load, self.model.layout.dp
        # Each group of ranks that share sequences has steps of `chunk_len` of its own, of which
        # decoding takes its part first.
        room = max(load.chunk_len - batch / groups, load.chunk_len / 2, 1.0)
        chunk = max(1.0, room * min(1.0, groups / together))
        decoding, done, length = self._decoding(batch), load.cached_len, load.input_len
        total_s, num_steps = 0.0, 0
        while done < length - 0.5:
            count = min(chunk, length - done)
            done += count
            shape = prefill_shape([(round(count) or 1, round(done))] * together)
            total_s += self._time_s(joined(shape, decoding))
            num_steps += 1
        return total_s, num_steps

    def _decoding(self, batch: float) -> StepShape:
        """The step of a batch whose answers are half done."""
        load = self.load
        held = round(batch * (load.input_len + load.output_len / 2))
        return decode_shape(round(batch), held, num_drafts=load.num_drafts)

    def _time_s(self, shape: StepShape) -> float:
        return max(self.model.device_s(shape), self.model.host_s(shape))

    def _queue(self, step_s: float, prompt_s: float, first: _First) -> tuple[float, float]:
        """Seconds that a prompt spends queued and computed, and from one request of a user to the
        next. A prompt makes all others later by `prompt_s`.

        Source: the mean value analysis of closed networks as Schweitzer approximates it (1979): a
        prompt finds those of the other users as they are on average, and half of the one in
        service, because prompts are alike. Answers pause while prompts of others are computed.
        """
        others, steps_s = self.users - 1, step_s * self._steps
        # From above: below there is another solution, in which answers take all the time.
        first_s, groups = sum(first), self.model.layout.dp
        queue_s = cycle_s = others * prompt_s + first_s
        for _ in range(_QUEUE_ROUNDS):
            # (cycle - queue) x (1 - others x prompt / cycle) = steps, solved for the cycle.
            half = (queue_s + others * prompt_s + steps_s) / 2
            cycle_s = half + sqrt(max(0.0, half * half - queue_s * others * prompt_s))
            busy = others * prompt_s / cycle_s
            before_s = max(0.0, others * queue_s / cycle_s - busy / 2) * prompt_s
            if groups > 1:
                before_s = _longer_s(step_s, min(busy, 0.99), self.users / cycle_s)
            change_s = (first_s + before_s - queue_s) / 2
            queue_s += change_s
            if abs(change_s) < _CLOSE * _CLOSE * queue_s:
                break
        # The approximation may be a little over what the prefill can do, in whose steps others
        # decode too.
        load, layout = self.load, self.model.layout
        filled = load.computed_len / (load.chunk_len * layout.dp * layout.pp)
        full_s = prompt_s if load.prompts_apart else prompt_s + filled * step_s
        late_s = max(0.0, self.users * full_s - cycle_s)
        return queue_s + late_s, cycle_s + late_s

    @property
    def _steps(self) -> float:
        """Decode steps of an answer, whose first token its prompt's step gives."""
        return (self.load.output_len - 1) / self.load.accepted

    def _made(
        self, step_s: float, prompt_s: float, first: _First, queue_s: float, answer_s: float
    ) -> Steady:
        load = self.load
        # Where all users start at once, the first request of each waits behind half of them.
        start_s = (self.users - 1) / 2 * prompt_s / load.requests_each
        ttft_s = self.model.calibration.first_token_s + queue_s + start_s
        request_s = ttft_s + answer_s
        per_s = self.users / request_s
        return Steady(
            ttft_s=ttft_s,
            **first._asdict(),
            tpot_s=answer_s / (load.output_len - 1) if load.output_len > 1 else step_s,
            request_s=request_s,
            output_per_s=per_s * load.output_len,
            total_per_s=per_s * (load.input_len + load.output_len),
            requests_per_s=per_s,
            batch=per_s * answer_s,
            running=self.users,
            prefill_share=min(1.0, per_s * prompt_s),
            step_s=step_s,
        )


def _longer_s(step_s: float, busy: float, per_s: float) -> float:
    """By how much prompts, for a share `busy` of the time, lengthen half of the step that runs when
    one comes and the step after it. Long steps are met more often: of all times the mean square."""
    mean_s = step_s / (1 - busy)
    more_s, chance = mean_s - step_s, -expm1(-per_s * mean_s)
    square = step_s * step_s + 2 * step_s * more_s + more_s * more_s / chance
    return square / (2 * mean_s) - step_s / 2 + more_s


def _largest(mean: float, count: int) -> float:
    """What the largest of `count` numbers is expected to be that are Poisson distributed."""
    expected, most, number, chance = 0.0, 0.0, 0, exp(-mean)
    while most < 1 - 1e-9 and number < _MOST_COUNTED:
        most += chance
        expected += 1 - min(1.0, most) ** count
        number += 1
        chance *= mean / number
    return expected
