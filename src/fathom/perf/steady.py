"""What a deployment does in the long run under a closed loop of users: time to first token, time
per output token, throughput. Arithmetic over a cost model, where `simulate` runs the scheduler.

Users are asked anew as soon as they are answered. Prompts queue at one server, the prefill, and
answers go on beside it: a closed network of a queue and a delay. Groups of DP attention are one
server that computes several prompts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import expm1, inf, sqrt

from fathom.errors import ConfigError
from fathom.perf.cost import CostModel
from fathom.perf.shape import StepShape, decode_shape, joined, prefill_shape

_ROUNDS, _QUEUE_ROUNDS = 40, 100
_CLOSE = 1e-4


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
    wait for room in the KV pools; `prefill_share`: of the time, spent on prompts."""

    ttft_s: float
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


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The search for a batch and an answer's time that agree with each other."""

    model: CostModel
    load: Load
    users: float

    def solve(self) -> Steady:
        load, batch = self.load, self.users
        together, found = 1.0, None
        for _ in range(_ROUNDS):
            step_s, prompt_s = self._step_s(batch), self._prompt_s(batch, together)
            queue_s, cycle_s = self._queue(step_s, prompt_s)
            answer_s = cycle_s - queue_s
            alone_s = queue_s + self._prompt_s(batch, 1) - prompt_s
            made = self._made(step_s, prompt_s, alone_s, answer_s)
            groups, pp = self.model.layout.dp, self.model.layout.pp
            waiting = float(round(queue_s * self.users / cycle_s))
            if groups > 1:
                # No queue for one server: each group takes up at once what came in a step, and all
                # their steps last as long. Of steps into which any prompt comes: how many come, and
                # over how many groups they are spread.
                coming = made.requests_per_s * (step_s + together * prompt_s)
                waiting = groups * (1 - (1 - 1 / groups) ** (coming / -expm1(-coming)))
            most = max(1, int(load.chunk_len // load.computed_len))
            together = max(1.0, min(waiting, most * groups * pp))
            decoding = min(self.users, max(1.0, made.requests_per_s * answer_s))
            if found is not None and abs(decoding - batch) < _CLOSE * batch:
                break
            found, batch = made, (batch + decoding) / 2
        return made

    def _step_s(self, batch: float) -> float:
        """Seconds between two steps of one sequence where no prompt is computed."""
        load, stages = self.load, self.model.layout.pp
        context = load.input_len + load.output_len / 2

        def step(sequences: int) -> float:
            shape = decode_shape(sequences, round(sequences * context), num_drafts=load.num_drafts)
            return max(self.model.device_s(shape), self.model.host_s(shape))

        # Each stage of a pipeline works on a part of the batch. Between whole batches: a line.
        share = max(1.0, batch / stages)
        low = int(share)
        below = step(low)
        return below if low == share else below + (share - low) * (step(low + 1) - below)

    def _prompt_s(self, batch: float, together: float) -> float:
        """Seconds that a prompt adds, of `together` computed at once; with its own part in it
        where decoding sequences share its steps."""
        low = int(together)
        total_s = self._prompts_s(batch, low)
        if together > low:
            total_s += (together - low) * (self._prompts_s(batch, low + 1) - total_s)
        return total_s / together / self.model.layout.pp

    def _prompts_s(self, batch: float, together: int) -> float:
        load, total_s = self.load, 0.0
        decoding = decode_shape(round(batch), round(batch * (load.input_len + load.output_len / 2)))
        done, length = load.cached_len, load.input_len
        # Each group of ranks that share sequences has steps of `chunk_len` of its own.
        chunk = max(1.0, load.chunk_len * min(1.0, self.model.layout.dp / together))
        while done < length - 0.5:
            count = min(chunk, length - done)
            done += count
            shape = prefill_shape([(round(count) or 1, round(done))] * together)
            total_s += self._chunk_s(shape, decoding)
        return total_s

    def _chunk_s(self, shape: StepShape, decoding: StepShape) -> float:
        if self.load.prompts_apart:
            return max(self.model.device_s(shape), self.model.host_s(shape))
        whole = self.model.device_s(joined(shape, decoding))
        return whole - self.model.device_s(decoding)

    def _queue(self, step_s: float, prompt_s: float) -> tuple[float, float]:
        """Seconds that a prompt spends queued and computed, and from one request of a user to the
        next.

        Source: the mean value analysis of closed networks as Schweitzer approximates it (1979): a
        prompt finds those of the other users as they are on average, and half of the one in
        service, because prompts are alike. Answers pause while prompts of others are computed.
        """
        others, steps_s = self.users - 1, step_s * self._steps
        # From above: below there is another solution, in which answers take all the time.
        queue_s = cycle_s = self.users * prompt_s
        for _ in range(_QUEUE_ROUNDS):
            # (cycle - queue) x (1 - others x prompt / cycle) = steps, solved for the cycle.
            half = (queue_s + others * prompt_s + steps_s) / 2
            cycle_s = half + sqrt(max(0.0, half * half - queue_s * others * prompt_s))
            found = others * queue_s / cycle_s
            arriving_s = prompt_s * (1 + max(0.0, found - others * prompt_s / cycle_s / 2))
            queue_s = (queue_s + arriving_s) / 2
        # The approximation may be a little over what the prefill can do.
        late_s = max(0.0, self.users * prompt_s - cycle_s)
        return queue_s + late_s, cycle_s + late_s

    @property
    def _steps(self) -> float:
        """Decode steps of an answer, whose first token its prompt's step gives."""
        return (self.load.output_len - 1) / self.load.accepted

    def _made(self, step_s: float, prompt_s: float, queue_s: float, answer_s: float) -> Steady:
        load = self.load
        # Where all users start at once, the first request of each waits behind half of them.
        first_s = (self.users - 1) / 2 * prompt_s / load.requests_each
        ttft_s = self.model.calibration.first_token_s + queue_s + first_s + step_s / 2
        request_s = ttft_s + answer_s
        per_s = self.users / request_s
        return Steady(
            ttft_s=ttft_s,
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
