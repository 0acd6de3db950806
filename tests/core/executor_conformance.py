"""What every executor must do, compared with a naive loop over the same executor.

The naive loop runs one request at a time, its whole prompt in one entry, one plan in flight, and
gives every token explicitly. To put an executor under the suite, subclass `ExecutorConformance` in
a test file under a name that begins with "Test", and set `case`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from fathom.core.executor import Executor, Handle
from fathom.core.types import Admission, MaskRows, PlanEntry, SamplingParams, StepPlan, StepResult
from fathom.errors import EngineError

GREEDY = SamplingParams(temperature=0.0, max_tokens=None)
RANDOM = SamplingParams(temperature=1.0, max_tokens=None)


@dataclass(frozen=True)
class ExecutorCase:
    """One executor. `build(depth)` makes a fresh one with room for at least 8 sequences of 3 pages
    and 4 tokens each, in pages and in tokens a step; `num_drafts` that it can propose."""

    build: Callable[[int], Executor]
    vocab_size: int
    num_drafts: int = 0
    timeout_s: float = 60.0


class Driver:
    """Plans by hand: hands out pages, ids and step numbers, and nothing else."""

    def __init__(self, case: ExecutorCase, depth: int = 2) -> None:
        self.case = case
        self.executor = case.build(depth)
        self.page_size = self.executor.capacity.page_size
        self._step = 0
        self._next_id = 0
        self._next_page = 0

    def pages(self, num_tokens: int) -> tuple[int, ...]:
        """Pages for `num_tokens`, round robin over the pool: long enough for one test."""
        count = -(-num_tokens // self.page_size)
        first, self._next_page = self._next_page, self._next_page + count
        return tuple(
            page % self.executor.capacity.num_pages for page in range(first, first + count)
        )

    def new_id(self) -> int:
        """An id that no sequence has had."""
        self._next_id += 1
        return self._next_id

    def submit(
        self, *entries: PlanEntry, dropped: tuple[int, ...] = (), num_drafts: int = 0
    ) -> Handle:
        """Submit a plan of these entries."""
        self._step += 1
        return self.executor.submit(StepPlan(self._step, entries, dropped, num_drafts))

    def run(
        self, *entries: PlanEntry, dropped: tuple[int, ...] = (), num_drafts: int = 0
    ) -> StepResult:
        """Submit a plan and wait for it."""
        handle = self.submit(*entries, dropped=dropped, num_drafts=num_drafts)
        return handle.wait(self.case.timeout_s)

    def prompt(self, length: int, salt: int = 0) -> tuple[int, ...]:
        """Some prompt; different for each salt."""
        return tuple(
            (position * position * 31 + 17 * position + 101 * salt + 3) % self.case.vocab_size
            for position in range(length)
        )

    def first(
        self,
        prompt: tuple[int, ...],
        *,
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
        max_len: int = 0,
        pages: tuple[int, ...] | None = None,
        end: int | None = None,
        known: int = 0,
    ) -> PlanEntry:
        """The entry that admits a new sequence: computes `prompt[known:end]`."""
        pages = self.pages(max(len(prompt), max_len)) if pages is None else pages
        return PlanEntry(
            self.new_id(),
            known,
            prompt[known:end],
            pages,
            samples=end is None or end == len(prompt),
            admission=Admission(prompt[:known], len(prompt), sampling, seed, ()),
        )

    def naive(
        self,
        prompt: tuple[int, ...],
        num_tokens: int,
        *,
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
    ) -> tuple[int, ...]:
        """`num_tokens` tokens after a prompt, by the naive loop."""
        entry = self.first(prompt, sampling=sampling, seed=seed, max_len=len(prompt) + num_tokens)
        tokens = list(self.run(entry).tokens[entry.id])
        while len(tokens) < num_tokens:
            start = len(prompt) + len(tokens) - 1
            result = self.run(PlanEntry(entry.id, start, (tokens[-1],)))
            tokens += result.tokens[entry.id]
        self.run(dropped=(entry.id,))
        return tuple(tokens)

    def follow(self, entry: PlanEntry, first_token: int, num_tokens: int) -> tuple[int, ...]:
        """`num_tokens` tokens of a sequence whose prompt `entry` has just completed."""
        tokens = [first_token]
        start = entry.start + entry.num_tokens
        while len(tokens) < num_tokens:
            result = self.run(PlanEntry(entry.id, start, (tokens[-1],)))
            tokens += result.tokens[entry.id]
            start += 1
        self.run(dropped=(entry.id,))
        return tuple(tokens)


class ExecutorConformance:
    """The suite."""

    case: ClassVar[ExecutorCase]

    @pytest.fixture(scope="class")
    @classmethod
    def driver(cls) -> Iterator[Driver]:
        """One executor of depth 2 for all tests that leave it in order."""
        driver = Driver(cls.case)
        yield driver
        driver.executor.close()

    def test_capacity_is_what_the_suite_needs(self, driver: Driver) -> None:
        capacity = driver.executor.capacity
        assert capacity.depth == 2
        assert capacity.max_sequences >= 8
        assert capacity.num_pages >= 8 * (3 + -(-4 // capacity.page_size))
        assert capacity.max_batch_tokens >= 8 * (3 * capacity.page_size + 4)

    def test_an_empty_plan_gives_an_empty_result(self, driver: Driver) -> None:
        result = driver.run()
        assert (dict(result.tokens), dict(result.drafts), dict(result.logprobs)) == ({}, {}, {})

    def test_results_carry_their_step_whatever_the_order_of_waiting(self, driver: Driver) -> None:
        first, second = driver.submit(), driver.submit()
        late, early = second.wait(driver.case.timeout_s), first.wait(driver.case.timeout_s)
        assert late.step == early.step + 1

    def test_wait_may_be_called_again(self, driver: Driver) -> None:
        handle = driver.submit()
        result = handle.wait(driver.case.timeout_s)
        assert handle.done()
        assert handle.wait(driver.case.timeout_s) == result

    def test_greedy_tokens_do_not_depend_on_the_batch(self, driver: Driver) -> None:
        size = driver.page_size
        prompts = [driver.prompt(length, salt=length) for length in (1, 2, size + 1, 2 * size + 3)]
        expected = [driver.naive(prompt, 4) for prompt in prompts]
        entries = [driver.first(prompt, max_len=len(prompt) + 4) for prompt in prompts]
        tokens = {entry.id: list(prompt) for entry, prompt in zip(entries, prompts, strict=True)}
        plan = entries
        for _ in range(4):
            for id, sampled in driver.run(*plan).tokens.items():
                tokens[id] += sampled
            plan = [
                PlanEntry(entry.id, len(tokens[entry.id]) - 1, (tokens[entry.id][-1],))
                for entry in reversed(entries)
            ]
        driver.run(dropped=tuple(tokens))
        for entry, prompt, answer in zip(entries, prompts, expected, strict=True):
            assert tuple(tokens[entry.id][len(prompt) :]) == answer

    def test_chunks_equal_the_whole(self, driver: Driver) -> None:
        prompt = driver.prompt(2 * driver.page_size + 3, salt=1)
        expected = driver.naive(prompt, 3)
        for chunk in {1, driver.page_size, driver.page_size + 2}:
            entry = driver.first(prompt, max_len=len(prompt) + 3, end=chunk)
            result = driver.run(entry)
            assert entry.id not in result.tokens, "a chunk that is not the last gave a token"
            start = chunk
            while start < len(prompt):
                end = min(len(prompt), start + chunk)
                samples = end == len(prompt)
                entry = PlanEntry(entry.id, start, prompt[start:end], samples=samples)
                result = driver.run(entry)
                start = end
            assert driver.follow(entry, result.tokens[entry.id][0], 3) == expected

    def test_a_cached_prefix_equals_computing_it(self, driver: Driver) -> None:
        size = driver.page_size
        prompt = driver.prompt(2 * size + 2, salt=2)
        other = prompt[: 2 * size] + driver.prompt(3, salt=3)
        expected = driver.naive(other, 3)
        owner = driver.first(prompt)
        driver.run(owner)
        pages = owner.new_pages[:2] + driver.pages(3 + 3)
        guest = driver.first(other, pages=pages, known=2 * size)
        result = driver.run(guest, dropped=(owner.id,))
        assert driver.follow(guest, result.tokens[guest.id][0], 3) == expected

    def test_pages_may_come_in_any_order_and_late(self, driver: Driver) -> None:
        size = driver.page_size
        prompt = driver.prompt(2 * size + 1, salt=4)
        expected = driver.naive(prompt, size + 2)
        pages = driver.pages(5 * size)[::-2]
        entry = driver.first(prompt, pages=pages)
        tokens = [driver.run(entry).tokens[entry.id][0]]
        late = list(driver.pages(2 * size))
        room = len(pages) * size
        while len(tokens) < size + 2:
            start = len(prompt) + len(tokens) - 1
            new_pages = (late.pop(),) if start == room else ()
            room += len(new_pages) * size
            step = driver.run(PlanEntry(entry.id, start, (tokens[-1],), new_pages))
            tokens += step.tokens[entry.id]
        driver.run(dropped=(entry.id,))
        assert tuple(tokens) == expected

    def test_tokens_none_equal_explicit_ones(self, driver: Driver) -> None:
        prompt = driver.prompt(driver.page_size + 1, salt=5)
        for sampling in (GREEDY, RANDOM):
            expected = driver.naive(prompt, 5, sampling=sampling, seed=11)
            entry = driver.first(prompt, sampling=sampling, seed=11, max_len=len(prompt) + 5)
            handles = [driver.submit(entry)]
            tokens: list[int] = []
            for start in range(len(prompt), len(prompt) + 4):
                handles.append(driver.submit(PlanEntry(entry.id, start, None)))
                tokens += handles.pop(0).wait(driver.case.timeout_s).tokens[entry.id]
            tokens += handles.pop().wait(driver.case.timeout_s).tokens[entry.id]
            driver.run(dropped=(entry.id,))
            assert tuple(tokens) == expected

    def test_a_sequence_may_be_dropped_while_in_flight(self, driver: Driver) -> None:
        prompt = driver.prompt(3, salt=6)
        expected = driver.naive(prompt, 1)
        entry = driver.first(prompt, max_len=8)
        first = driver.submit(entry)
        ahead = driver.submit(PlanEntry(entry.id, len(prompt), None))
        assert first.wait(driver.case.timeout_s).tokens[entry.id] == expected
        dropping = driver.submit(dropped=(entry.id,))
        assert len(ahead.wait(driver.case.timeout_s).tokens[entry.id]) == 1
        assert not dropping.wait(driver.case.timeout_s).tokens

    def test_preempted_sequences_continue_as_if_nothing_was(self, driver: Driver) -> None:
        prompt = driver.prompt(driver.page_size, salt=7)
        for sampling in (GREEDY, RANDOM):
            expected = driver.naive(prompt, 6, sampling=sampling, seed=5)
            entry = driver.first(prompt, sampling=sampling, seed=5, max_len=len(prompt) + 6)
            tokens = list(driver.run(entry).tokens[entry.id])
            again = PlanEntry(entry.id, len(prompt), (tokens[-1],))
            tokens += driver.run(again).tokens[entry.id]
            known = prompt + tuple(tokens)
            admission = Admission((), len(prompt), sampling, 5, ())
            pages = driver.pages(len(prompt) + 6)
            entry = PlanEntry(entry.id, 0, known, pages, admission=admission)
            result = driver.run(entry, dropped=(entry.id,))
            tokens += driver.follow(entry, result.tokens[entry.id][0], 4)
            assert tuple(tokens) == expected

    def test_equal_seeds_reproduce_and_others_differ(self, driver: Driver) -> None:
        prompt = driver.prompt(4, salt=8)
        answers = [driver.naive(prompt, 8, sampling=RANDOM, seed=seed) for seed in (1, 1, 2, 3)]
        assert answers[0] == answers[1]
        assert len(set(answers)) > 1

    @pytest.mark.parametrize("sampling", [GREEDY, RANDOM], ids=["greedy", "random"])
    def test_drafts_never_change_the_answer(self, driver: Driver, sampling: SamplingParams) -> None:
        prompt = driver.prompt(driver.page_size + 1, salt=9)
        expected = driver.naive(prompt, 9, sampling=sampling, seed=3)
        for num_right in range(4):
            entry = driver.first(prompt, sampling=sampling, seed=3, max_len=len(prompt) + 12)
            tokens = list(driver.run(entry).tokens[entry.id])
            while len(tokens) < 5:
                drafts = list(expected[len(tokens) : len(tokens) + 3])
                if num_right < 3:
                    drafts[num_right] = (drafts[num_right] + 1) % driver.case.vocab_size
                start = len(prompt) + len(tokens) - 1
                step = PlanEntry(entry.id, start, (tokens[-1],), drafts=tuple(drafts))
                accepted = driver.run(step).tokens[entry.id]
                assert len(accepted) == num_right + 1
                tokens += accepted
            driver.run(dropped=(entry.id,))
            assert tuple(tokens) == expected[: len(tokens)]

    def test_own_drafts_never_change_the_answer(self, driver: Driver) -> None:
        num_drafts = driver.case.num_drafts
        prompt = driver.prompt(driver.page_size + 1, salt=10)
        expected = driver.naive(prompt, 8)
        entry = driver.first(prompt, max_len=len(prompt) + 8 + num_drafts)
        result = driver.run(entry, num_drafts=num_drafts)
        tokens = list(result.tokens[entry.id])
        while len(tokens) < 8:
            drafts = result.drafts.get(entry.id, ())
            assert len(drafts) == num_drafts
            start = len(prompt) + len(tokens) - 1
            step = PlanEntry(entry.id, start, (tokens[-1],), drafts=drafts)
            result = driver.run(step, num_drafts=num_drafts)
            assert 1 <= len(result.tokens[entry.id]) <= num_drafts + 1
            tokens += result.tokens[entry.id]
        driver.run(dropped=(entry.id,))
        assert tuple(tokens[:8]) == expected

    def test_masks_hold_at_every_position(self, driver: Driver) -> None:
        prompt = driver.prompt(3, salt=11)
        allowed = (1, driver.case.vocab_size - 1)
        row = bytearray(-(-driver.case.vocab_size // 8))
        for token_id in allowed:
            row[token_id >> 3] |= 1 << (token_id & 7)
        entry = driver.first(prompt, max_len=8)._replace(mask=MaskRows(bytes(row)))
        token_id = driver.run(entry).tokens[entry.id][0]
        assert token_id in allowed
        step = PlanEntry(entry.id, 3, (token_id,), drafts=(1,), mask=MaskRows(bytes(row) * 2))
        assert set(driver.run(step).tokens[entry.id]) <= set(allowed)
        driver.run(dropped=(entry.id,))

    def test_logprobs_come_where_asked(self, driver: Driver) -> None:
        prompt = driver.prompt(4, salt=12)
        sampling = SamplingParams(temperature=0.0, max_tokens=None, logprobs=2, prompt_logprobs=1)
        plain = driver.first(prompt)
        chunk = driver.first(prompt, sampling=sampling, end=2)
        results = [driver.run(plain, chunk)]
        results.append(driver.run(PlanEntry(chunk.id, 2, prompt[2:]), dropped=(plain.id,)))
        driver.run(dropped=(chunk.id,))
        assert not any(plain.id in {**r.logprobs, **r.prompt_logprobs} for r in results)
        (row,) = results[1].logprobs[chunk.id]
        assert row.token_id == results[1].tokens[chunk.id][0]
        assert (row.rank, len(row.top)) == (1, 2)
        assert row.logprob <= 0
        scored = [row for r in results for row in r.prompt_logprobs.get(chunk.id, ())]
        assert tuple(row.token_id for row in scored) == prompt[1:]
        assert all(len(row.top) == 1 for row in scored)

    def test_a_plan_that_contradicts_those_before_is_refused(self) -> None:
        driver = Driver(self.case)
        try:
            with pytest.raises(EngineError):
                driver.run(PlanEntry(driver.new_id(), 0, (1,), driver.pages(1)))
            with pytest.raises(EngineError):
                driver.submit()  # what the device holds is unknown from there on
        finally:
            driver.executor.close()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_depth_bounds_the_plans_in_flight(self, depth: int) -> None:
        driver = Driver(self.case, depth)
        try:
            handles = [driver.submit() for _ in range(depth)]
            try:
                handles.append(driver.submit())
            except EngineError:
                pass  # refused; or the device had been quick:
            else:
                assert handles[0].done()
            for handle in handles:
                handle.wait(self.case.timeout_s)
            driver.run()
        finally:
            driver.executor.close()

    def test_close_fails_what_is_waited_for_and_what_comes_later(self) -> None:
        driver = Driver(self.case)
        handle = driver.submit(driver.first(driver.prompt(3)))
        driver.executor.close()
        driver.executor.close()
        if not handle.done():
            with pytest.raises(EngineError):
                handle.wait(self.case.timeout_s)
        with pytest.raises(EngineError):
            driver.submit()


class SamplingConformance(ExecutorConformance):
    """The suite for executors that choose tokens by logits."""

    @pytest.mark.parametrize("rule", ["allowed", "bad", "bad together"])
    def test_allowed_and_bad_tokens_hold_with_drafts_and_in_company(
        self, driver: Driver, rule: str
    ) -> None:
        prompt = driver.prompt(3, salt=13)
        free = driver.naive(prompt, 4)
        others = tuple(token for token in range(driver.case.vocab_size) if token not in free)[:3]
        asked: dict[str, Any] = {
            "allowed": {"allowed_token_ids": others},
            "bad": {"bad_token_ids": tuple((token,) for token in free)},
            "bad together": {"bad_token_ids": (free[:2],)},
        }[rule]
        sampling = SamplingParams(temperature=0.0, max_tokens=None, **asked)
        expected = driver.naive(prompt, 4, sampling=sampling)
        if rule == "allowed":
            assert set(expected) <= set(others)
        elif rule == "bad":
            assert not set(expected) & set(free)
        else:
            assert (expected[0], expected[1] == free[1]) == (free[0], False)
        entry = driver.first(prompt, sampling=sampling, max_len=12)
        company = driver.first(prompt, max_len=12)
        result = driver.run(company, entry)
        assert result.tokens[company.id] == free[:1]
        tokens = result.tokens[entry.id]
        step = PlanEntry(entry.id, len(prompt), tokens, drafts=free[1:3])
        tokens += driver.run(PlanEntry(company.id, len(prompt), free[:1]), step).tokens[entry.id]
        driver.run(dropped=(entry.id, company.id))
        assert tokens == expected[: len(tokens)]
