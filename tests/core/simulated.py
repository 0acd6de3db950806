"""An executor without a device: virtual time, pseudo tokens, and a strict check.

It knows sequences only from the plans it is given, as a worker does. Each KV slot remembers the
hash of the token prefix that it was computed with, and each step verifies all the slots that it
would read: a page that was reused too early, shared wrongly or never computed is an error here,
where on a device it would be a wrong answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import log

from fathom.core.executor import Capacity
from fathom.core.types import (
    Admission,
    PlanEntry,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from fathom.errors import EngineError
from fathom.perf.plan_shape import LinearTime, plan_shape
from fathom.perf.shape import StepTime

_MASK = (1 << 64) - 1


def mix(state: int, value: int) -> int:
    """A 64-bit hash of two: splitmix64's finalizer (Steele, Lea, Flood 2014) over their sum."""
    z = (state + (value + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@dataclass(slots=True)
class VirtualClock:
    """Simulated time in seconds, which only waiting and host work advance."""

    now_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoModel:
    """Tokens as a pure function of the whole prefix (and of the seed where temperature > 0).

    `eos_rate` is the chance that a position's token is an end token of the request, and
    `draft_accuracy` the chance that a draft is the token that will be sampled.
    """

    vocab_size: int = 1000
    eos_rate: float = 0.0
    draft_accuracy: float = 0.8

    def next_token(
        self, prefix_hash: int, admission: Admission, num_outputs: int, mask: bytes | None
    ) -> int:
        """The token after a prefix, the request's `num_outputs`-th output (counted from 0)."""
        sampling = admission.sampling
        state = prefix_hash
        if sampling.temperature > 0:
            state = mix(mix(state, admission.seed), num_outputs)
        end_ids = {*admission.eos_token_ids, *sampling.stop_token_ids}
        refused: Collection[int] = end_ids if num_outputs < sampling.min_tokens else ()
        eos_ids = [i for i in admission.eos_token_ids if i not in refused and _allows(mask, i)]
        if eos_ids and _uniform(mix(state, 1)) < self.eos_rate:
            return eos_ids[state % len(eos_ids)]
        token_id = state % self.vocab_size
        if not refused and mask is None:
            return token_id
        # The first allowed token at or after the one drawn.
        for offset in range(self.vocab_size):
            candidate = (token_id + offset) % self.vocab_size
            if candidate not in refused and _allows(mask, candidate):
                return candidate
        raise EngineError("mask", found="no token allowed", wanted="at least one")


@dataclass(slots=True)
class _WorkerSequence:
    """What a worker knows of a sequence: `hashes[i]` covers tokens 0..i."""

    admission: Admission
    tokens: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)

    def write(self, start: int, tokens: tuple[int, ...]) -> None:
        """Set the tokens from `start` on; whatever was known behind them is forgotten."""
        del self.tokens[start:], self.hashes[start:]
        state = self.hashes[-1] if self.hashes else 0
        for token_id in tokens:
            state = mix(state, token_id)
            self.tokens.append(token_id)
            self.hashes.append(state)


class SimulatedHandle:
    """A step whose result is known and whose time has not come."""

    def __init__(
        self,
        executor: SimulatedExecutor,
        result: StepResult,
        ends_s: float,
        readers: Mapping[int, set[int]],
    ) -> None:
        self._executor, self._result, self._ends_s = executor, result, ends_s
        self._is_waited = False
        self.readers = readers  # sequences by page

    def wait(self, timeout_s: float) -> StepResult:
        """The result; the clock moves on to the step's end.

        Raises: EngineError where the end is more than `timeout_s` away, or the executor closed.
        """
        if not self._is_waited:
            self._executor.finish(self, self._ends_s, timeout_s)
            self._is_waited = True
        return self._result

    def done(self) -> bool:
        """Whether the clock has passed the step's end."""
        return self._is_waited or self._executor.clock.now_s >= self._ends_s


class SimulatedExecutor:
    """An `Executor` on a virtual clock.

    `verify_kv` checks every slot that a step reads, at a cost that grows with the contexts.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        cost: StepTime | None = None,
        model: PseudoModel | None = None,
        clock: VirtualClock | None = None,
        verify_kv: bool = True,
    ) -> None:
        self.capacity = capacity
        self.clock = clock or VirtualClock()
        self.model = model or PseudoModel()
        self._cost = cost or LinearTime()
        self._verify_kv = verify_kv
        self._sequences: dict[int, _WorkerSequence] = {}
        self._slots: list[int | None] = [None] * (capacity.num_pages * capacity.page_size)
        self._in_flight: list[SimulatedHandle] = []
        self._device_free_s = 0.0
        self._last_step = 0
        self._failure: EngineError | None = None

    def submit(self, plan: StepPlan) -> SimulatedHandle:
        """Start a step.

        Raises: EngineError for a plan that breaks the contract, naming how, and ever after.
        """
        if self._failure is not None:
            raise self._failure
        depth, num_in_flight = self.capacity.depth, sum(not h.done() for h in self._in_flight)
        _require(
            num_in_flight < depth, "plans in flight", str(num_in_flight + 1), f"at most {depth}"
        )
        _require(plan.step > self._last_step, "step", str(plan.step), f"over {self._last_step}")
        self._last_step = plan.step
        shape = plan_shape(plan)
        self.clock.now_s += self._cost.host_s(shape)
        elapsed_s = self._cost.device_s(shape)
        self._device_free_s = max(self._device_free_s, self.clock.now_s) + elapsed_s
        try:
            result = self._execute(plan, elapsed_s)
        except EngineError as error:
            self._failure = error
            raise
        handle = SimulatedHandle(self, result, self._device_free_s, self._readers(plan))
        self._in_flight.append(handle)
        return handle

    def finish(self, handle: SimulatedHandle, ends_s: float, timeout_s: float) -> None:
        """Let time pass until a step's end, `timeout_s` from now at most."""
        if self._failure is None and ends_s - self.clock.now_s > timeout_s:
            self.clock.now_s += timeout_s
            self._failure = EngineError("step", found=f"not done in {timeout_s:g} s")
        if self._failure is not None:
            raise self._failure
        self.clock.now_s = max(self.clock.now_s, ends_s)
        self._in_flight.remove(handle)

    def close(self) -> None:
        """Forget everything; idempotent."""
        self._failure = self._failure or EngineError("simulated executor", found="closed")
        self._sequences.clear()

    def _execute(self, plan: StepPlan, elapsed_s: float) -> StepResult:
        _require(
            plan.num_tokens <= self.capacity.max_batch_tokens,
            "tokens in a step",
            str(plan.num_tokens),
            f"at most {self.capacity.max_batch_tokens}",
        )
        for dropped in plan.dropped:
            _require(dropped in self._sequences, "dropped", f"sequence {dropped}", "a known one")
            del self._sequences[dropped]
        tokens: dict[int, tuple[int, ...]] = {}
        drafts: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        for entry in plan.entries:
            sequence = self._compute(entry)
            rows = _prompt_rows(sequence, entry, self.model.vocab_size)
            if rows:
                prompt_logprobs[entry.id] = rows
            if not entry.samples:
                continue
            tokens[entry.id] = self._sample(sequence, entry)
            if plan.num_drafts:
                drafts[entry.id] = self._propose(sequence, plan.num_drafts)
            num_top = sequence.admission.sampling.logprobs
            if num_top is not None:
                logprobs[entry.id] = tuple(
                    _flat_logprobs(token_id, num_top, self.model.vocab_size)
                    for token_id in tokens[entry.id]
                )
        return StepResult(plan.step, tokens, drafts, logprobs, prompt_logprobs, elapsed_s)

    def _compute(self, entry: PlanEntry) -> _WorkerSequence:
        """Bring the worker's sequence up to date with an entry, write and check its KV."""
        name = f"sequence {entry.id}"
        if entry.admission is not None:
            _require(entry.id not in self._sequences, "admission", name, "one not yet known")
            self._sequences[entry.id] = _WorkerSequence(entry.admission)
            self._sequences[entry.id].write(0, entry.admission.known_ids)
        _require(entry.id in self._sequences, "entry", name, "an admitted sequence")
        sequence = self._sequences[entry.id]
        num_known, start = len(sequence.tokens), entry.start
        tokens = entry.tokens
        if tokens is None:
            _require(start == num_known - 1, f"start of {name}", str(start), str(num_known - 1))
            tokens = (sequence.tokens[start],)
        _require(0 <= start <= num_known, f"start of {name}", str(start), f"0 to {num_known}")
        sampled = tuple(sequence.tokens[start : start + len(tokens)])
        _require(tokens[: len(sampled)] == sampled, f"tokens of {name}", str(tokens), str(sampled))
        sequence.pages += entry.new_pages
        end = start + entry.num_tokens
        room = len(sequence.pages) * self.capacity.page_size
        _require(end <= room, f"pages of {name}", f"room for {room} tokens", f"room for {end}")
        sequence.write(start, tokens + entry.drafts)
        if self._verify_kv:
            self._verify(entry, sequence)
        for position in range(start, end):
            self._slots[self._slot(sequence, position)] = sequence.hashes[position]
        return sequence

    def _verify(self, entry: PlanEntry, sequence: _WorkerSequence) -> None:
        """Assert that the entry reads its own prefix, and writes where no step in flight reads."""
        for position in range(entry.start):
            _require(
                self._slots[self._slot(sequence, position)] == sequence.hashes[position],
                f"KV of sequence {entry.id}",
                f"another prefix at position {position}",
                "the sequence's own",
            )
        size = self.capacity.page_size
        written = sequence.pages[entry.start // size : -(-(entry.start + entry.num_tokens) // size)]
        for handle in self._in_flight:
            for page in written:
                readers = handle.readers.get(page, set()) - {entry.id}
                _require(not readers, f"page {page}", f"in flight for {readers}", "one at rest")

    def _readers(self, plan: StepPlan) -> Mapping[int, set[int]]:
        readers: defaultdict[int, set[int]] = defaultdict(set)
        if self._verify_kv:
            for entry in plan.entries:
                for page in self._sequences[entry.id].pages:
                    readers[page].add(entry.id)
        return readers

    def _slot(self, sequence: _WorkerSequence, position: int) -> int:
        index, offset = divmod(position, self.capacity.page_size)
        return sequence.pages[index] * self.capacity.page_size + offset

    def _sample(self, sequence: _WorkerSequence, entry: PlanEntry) -> tuple[int, ...]:
        """The token at the last position, and one more for each draft that it confirms."""
        admission = sequence.admission
        base = len(sequence.tokens) - len(entry.drafts) - 1
        bits = entry.mask.read() if entry.mask else b""
        row_bytes = len(bits) // (len(entry.drafts) + 1)
        accepted: list[int] = []
        for i, draft in enumerate((*entry.drafts, None)):
            mask = bits[i * row_bytes : (i + 1) * row_bytes] if entry.mask else None
            num_outputs = base + 1 + i - admission.num_prompt
            prefix_hash = sequence.hashes[base + i]
            accepted.append(self.model.next_token(prefix_hash, admission, num_outputs, mask))
            if accepted[-1] != draft:
                break
        sequence.write(base + 1, tuple(accepted))
        return tuple(accepted)

    def _propose(self, sequence: _WorkerSequence, num_drafts: int) -> tuple[int, ...]:
        admission = sequence.admission
        state = sequence.hashes[-1]
        num_outputs = len(sequence.tokens) - admission.num_prompt
        drafts: list[int] = []
        for i in range(num_drafts):
            token_id = self.model.next_token(state, admission, num_outputs + i, None)
            if _uniform(mix(state, 2)) >= self.model.draft_accuracy:
                token_id = (token_id + 1) % self.model.vocab_size
            drafts.append(token_id)
            state = mix(state, token_id)
        return tuple(drafts)


def _prompt_rows(
    sequence: _WorkerSequence, entry: PlanEntry, vocab_size: int
) -> tuple[TokenLogprobs, ...]:
    num_top = sequence.admission.sampling.prompt_logprobs
    if num_top is None:
        return ()
    end = min(entry.start + entry.num_tokens, sequence.admission.num_prompt)
    return tuple(
        _flat_logprobs(sequence.tokens[position], num_top, vocab_size)
        for position in range(max(1, entry.start), end)
    )


def _flat_logprobs(token_id: int, num_top: int, vocab_size: int) -> TokenLogprobs:
    """Log-probabilities of a uniform distribution, the token itself named first."""
    logprob = -log(vocab_size)
    top = tuple(((token_id + i) % vocab_size, logprob) for i in range(min(num_top, vocab_size)))
    return TokenLogprobs(token_id, logprob, 1, top)


def _allows(mask: bytes | None, token_id: int) -> bool:
    return mask is None or bool(mask[token_id >> 3] >> (token_id & 7) & 1)


def _uniform(state: int) -> float:
    return state / (1 << 64)


def _require(is_right: bool, what: str, found: str, wanted: str) -> None:
    if not is_right:
        raise EngineError(f"simulated executor: {what}", found=found, wanted=wanted)
