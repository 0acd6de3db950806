"""Compares a worker's tokens, over random plans, with a naive loop that has no pages or batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.core.types import (
    Admission,
    MaskRows,
    PlanEntry,
    ReasoningLimit,
    SamplingParams,
    StepPlan,
    StepResult,
)
from fathom.errors import EngineError
from fathom.ops.comm import SingleRank
from fathom.ops.reference import ReferenceBackend
from fathom.runtime.uniform import uniforms
from fathom.runtime.worker import Worker, WorkerParts
from tests.runtime.toy_model import (
    VOCAB,
    ToyDrafts,
    ToyModel,
    context_hash,
    greedy,
    hash_logits,
    naive_tokens,
)
from tests.runtime.toy_model import toy_cache as _cache

# Clients that are dropped do not give theirs back: enough for any draw of a test.
NUM_PAGES = 4096


def make_worker(
    page_size: int, *, drafts: ToyDrafts | None = None, num_pages: int = NUM_PAGES
) -> Worker:
    return Worker(
        WorkerParts(
            model=ToyModel(),
            draft_model=drafts,
            ops=ReferenceBackend(),
            comm=SingleRank(),
            kv_cache=_cache(num_pages, page_size),
            page_size=page_size,
            max_position=10_000,
        )
    )


@dataclass
class Client:
    """One sequence as a scheduler would drive it, with random chunks and preemptions."""

    id: int
    prompt: list[int]
    sampling: SamplingParams
    seed: int = 0
    outputs: list[int] = field(default_factory=list)
    computed: int = 0
    num_pages: int = 0
    drafts: tuple[int, ...] = ()
    is_on_device: bool = False  # its last token, sampled by its last entry
    is_admitted: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.outputs


class Driver:
    """Makes random legal plans for clients and takes in the results."""

    def __init__(self, worker: Worker, page_size: int, seed: int, num_drafts: int = 0) -> None:
        self.worker, self.page_size, self.num_drafts = worker, page_size, num_drafts
        self.random = random.Random(seed)
        self.free = list(range(NUM_PAGES))
        self.random.shuffle(self.free)
        self.step = 0
        self.proposed = self.accepted = 0
        self.prompt_logprobs: dict[int, list] = {}

    def run(self, clients: list[Client]) -> None:
        live = list(clients)
        dropped: list[int] = []
        while live:
            for client in live:
                if client.is_admitted and self.random.random() < 0.05:
                    dropped.append(client.id)
                    client.is_admitted, client.computed, client.num_pages = False, 0, 0
                    client.drafts, client.is_on_device = (), False
            chosen = [c for c in live if self.random.random() < 0.8] or live[:1]
            self.random.shuffle(chosen)
            self.step += 1
            entries = tuple(self._entry(client) for client in chosen)
            plan = StepPlan(self.step, entries, tuple(dropped), self.num_drafts)
            result = self.worker.execute(plan)
            dropped = self._take(plan, result, {c.id: c for c in chosen})
            live = [c for c in live if len(c.outputs) < (c.sampling.max_tokens or 0)]

    def _entry(self, client: Client) -> PlanEntry:
        start, known = client.computed, len(client.tokens)
        end = min(known, start + self.random.randint(1, 9))
        samples = end == known
        drafts = client.drafts if samples and known - start == 1 else ()
        last = end + len(drafts)
        new_pages = []
        while client.num_pages * self.page_size < last:
            new_pages.append(self.free.pop())
            client.num_pages += 1
        admission = None
        if not client.is_admitted:
            client.is_admitted = True
            admission = Admission((), len(client.prompt), client.sampling, client.seed, (1,))
        tokens = tuple(client.tokens[start:end])
        runs_ahead = client.is_on_device and not drafts
        client.computed, client.is_on_device = end, samples
        return PlanEntry(
            client.id,
            start,
            None if runs_ahead else tokens,
            tuple(new_pages),
            samples,
            drafts,
            admission,
        )

    def _take(self, plan: StepPlan, result: StepResult, clients: dict[int, Client]) -> list[int]:
        assert result.step == plan.step
        ended = []
        for entry in plan.entries:
            client = clients[entry.id]
            self.prompt_logprobs.setdefault(entry.id, []).extend(
                result.prompt_logprobs.get(entry.id, ())
            )
            if not entry.samples:
                assert entry.id not in result.tokens
                continue
            tokens = result.tokens[entry.id]
            self.proposed += len(entry.drafts)
            self.accepted += len(tokens) - 1
            client.outputs.extend(tokens)
            client.computed = len(client.tokens) - 1
            client.drafts = result.drafts.get(entry.id, ())
            if len(client.outputs) >= (client.sampling.max_tokens or 0):
                ended.append(client.id)
        return ended


def _prompts(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))] for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    page_size=st.sampled_from([1, 3, 16, 64]),
    num_drafts=st.sampled_from([0, 1, 3]),
    wrong_every=st.sampled_from([0, 2]),
)
def test_greedy_tokens_equal_the_naive_loop(
    seed: int, page_size: int, num_drafts: int, wrong_every: int
) -> None:
    rng = random.Random(seed)
    drafts = ToyDrafts(wrong_every) if num_drafts else None
    driver = Driver(make_worker(page_size, drafts=drafts), page_size, seed, num_drafts)
    clients = [
        Client(i, prompt, greedy(rng.randint(1, 20)))
        for i, prompt in enumerate(_prompts(rng, rng.randint(1, 5)))
    ]
    driver.run(clients)
    for client in clients:
        naive = naive_tokens(client.prompt, len(client.outputs))
        assert client.outputs == naive
    if not wrong_every:
        # The toy draft layer is right whenever its KV is: so all of its proposals must stand.
        assert driver.accepted == driver.proposed
        assert not num_drafts or driver.proposed or len(clients[0].outputs) < 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_drafts=st.sampled_from([0, 1, 3]), budget=st.integers(0, 9))
def test_reasoning_ends_at_its_limit(seed: int, num_drafts: int, budget: int) -> None:
    """With drafts too, and only where the output began with reasoning and has not closed it."""
    rng = random.Random(seed)
    drafts = ToyDrafts(2) if num_drafts else None
    driver = Driver(make_worker(3, drafts=drafts), 3, seed, num_drafts)
    clients = []
    for i, prompt in enumerate(_prompts(rng, 4)):
        free = naive_tokens(prompt, 16)
        limit = ReasoningLimit(
            budget, free[rng.randrange(16)], rng.choice([None, free[0], free[3], free[4]])
        )
        clients.append(Client(i, prompt, replace(greedy(16), reasoning_limit=limit)))
    driver.run(clients)
    for client in clients:
        limit = client.sampling.reasoning_limit
        assert limit is not None
        expected: list[int] = []
        num_inside = 0 if limit.start_id is None else None
        is_closed = False
        while len(expected) < len(client.outputs):
            token = naive_tokens([*client.prompt, *expected], 1)[0]
            if num_inside == limit.num_tokens and not is_closed:
                token = limit.end_id
            expected.append(token)
            is_closed |= token == limit.end_id
            if num_inside is not None:
                num_inside += 1
            elif token == limit.start_id and len(expected) <= 4:
                num_inside = 0
        assert client.outputs == expected


def _naive_sampled(client: Client) -> list[int]:
    """Presence, frequency and repetition penalties and min_tokens, then the inverse of the CDF."""
    sampling, tokens = client.sampling, list(client.prompt)
    for position in range(len(client.outputs)):
        logits = hash_logits(context_hash(tokens)).astype(np.float64)
        outputs = tokens[len(client.prompt) :]
        for token in range(VOCAB):
            if token in tokens:
                logits[token] *= (1 / sampling.repetition_penalty) ** np.sign(logits[token])
            count = outputs.count(token)
            logits[token] -= sampling.frequency_penalty * count
            logits[token] -= sampling.presence_penalty * (count > 0)
        if position < sampling.min_tokens:
            logits[[1, *sampling.stop_token_ids]] = -np.inf
        order = np.argsort(-logits, kind="stable")
        probs = np.exp((logits - logits.max()) / sampling.temperature)[order]
        edges = np.cumsum(probs) / probs.sum()
        point = uniforms([client.seed], [position])[0]
        tokens.append(int(order[np.searchsorted(edges, point, side="right")]))
    return tokens[len(client.prompt) :]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_drafts=st.sampled_from([0, 2]))
def test_sampled_tokens_do_not_depend_on_steps_or_drafts(seed: int, num_drafts: int) -> None:
    """Penalties see accepted drafts; the seed alone decides, whatever ran beside."""
    rng = random.Random(seed)
    drafts = ToyDrafts(3) if num_drafts else None
    driver = Driver(make_worker(4, drafts=drafts), 4, seed, num_drafts)
    clients = [
        Client(
            i,
            prompt,
            SamplingParams(
                temperature=rng.choice([0.3, 1.0]),
                presence_penalty=rng.choice([0.0, 0.5]),
                frequency_penalty=rng.choice([0.0, 0.3]),
                repetition_penalty=rng.choice([1.0, 1.3]),
                min_tokens=rng.choice([0, 5]),
                stop_token_ids=(2, 3),
                max_tokens=12,
            ),
            seed=rng.randrange(2**62),
        )
        for i, prompt in enumerate(_prompts(rng, 3))
    ]
    driver.run(clients)
    for client in clients:
        assert client.outputs == _naive_sampled(client)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_steps_prepared_ahead_give_the_same_tokens(seed: int) -> None:
    """Every step is prepared before the one before it runs, as the executor does: its tokens, and
    what penalties and min_tokens see, are still to come. Sequences begin, and end, in between."""
    rng = random.Random(seed)
    worker, clients, pages = make_worker(4), [], iter(range(512))
    for i, prompt in enumerate(_prompts(rng, 4)):
        max_tokens = rng.randint(1, 12)
        sampling = SamplingParams(
            temperature=rng.choice([0.3, 1.0]),
            presence_penalty=rng.choice([0.0, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            min_tokens=rng.choice([0, min(5, max_tokens)]),
            stop_token_ids=(2, 3),
            max_tokens=max_tokens,
        )
        clients.append(Client(i, prompt, sampling, seed=rng.randrange(2**62)))
    waiting, running, dropped, step = list(clients), [], (), 0
    runs: list[Callable[[], StepResult]] = []
    while waiting or running or dropped:
        entries = [PlanEntry(c.id, len(c.prompt) + c.computed, None) for c in running]
        if waiting and rng.random() < 0.5:
            client = waiting.pop()
            running.append(client)
            own = tuple(next(pages) for _ in range((len(client.prompt) + 15) // 4))
            admission = Admission((), len(client.prompt), client.sampling, client.seed, (1,))
            prompt = tuple(client.prompt)
            entries.append(PlanEntry(client.id, 0, prompt, own, admission=admission))
            client.computed = -1  # of its outputs
        step += 1
        runs.append(worker.prepare(StepPlan(step, tuple(entries), dropped)))
        for client in running:
            client.computed += 1
        ended = [c for c in running if c.computed + 1 == c.sampling.max_tokens]
        dropped = tuple(client.id for client in ended)
        running = [client for client in running if client not in ended]
        is_over = not (waiting or running or dropped)
        while len(runs) > (0 if is_over else 1):
            for id, tokens in runs.pop(0)().tokens.items():
                clients[id].outputs += tokens
    for client in clients:
        assert len(client.outputs) == client.sampling.max_tokens
        assert client.outputs == _naive_sampled(client)


@pytest.mark.parametrize("num_drafts", [0, 2])
def test_logprobs_of_prompt_and_answer_are_the_models(num_drafts: int) -> None:
    """Prompt rows come once each however the prompt was cut; answers' rows match their tokens."""
    drafts = ToyDrafts(2) if num_drafts else None
    for seed in range(6):
        worker = make_worker(4, drafts=drafts)
        prompt = _prompts(random.Random(seed), 1)[0]
        sampling = greedy(8, logprobs=2, prompt_logprobs=1)
        rng = random.Random(seed)
        tokens, start, rows, answer_rows = list(prompt), 0, [], []
        proposals: tuple[int, ...] = ()
        admission: Admission | None = Admission((), len(prompt), sampling, 0, ())
        for step in range(100):
            end = min(len(tokens), start + rng.randint(1, 6))
            samples = end == len(tokens)
            entry = PlanEntry(
                7,
                start,
                tuple(tokens[start:end]),
                tuple(range(32)) if admission else (),
                samples,
                proposals if samples else (),
                admission,
            )
            result = worker.execute(StepPlan(step, (entry,), (), num_drafts))
            admission, start = None, end
            rows += result.prompt_logprobs.get(7, ())
            if samples:
                tokens += result.tokens[7]
                answer_rows += result.logprobs[7]
                proposals = result.drafts.get(7, ())
                start = len(tokens) - 1
            if len(tokens) >= len(prompt) + 8:
                break
        assert len(rows) == len(prompt) - 1
        for place, row in enumerate([*rows, *answer_rows], start=1):
            wide = hash_logits(context_hash(tokens[:place])).astype(np.float64)
            scores = wide - np.log(np.exp(wide).sum())
            assert row.token_id == tokens[place]
            np.testing.assert_allclose(row.logprob, scores[row.token_id], atol=1e-5)
            assert row.rank == int((scores > scores[row.token_id]).sum()) + 1
            assert len(row.top) == (1 if place < len(prompt) else 2)


def test_a_mask_has_one_row_per_sampled_position() -> None:
    worker = make_worker(4)
    admission = Admission((), 2, greedy(), 0, ())
    rows = [np.packbits(np.arange(VOCAB) == token, bitorder="little").tobytes() for token in (9, 4)]
    first = PlanEntry(0, 0, (5, 6), (0, 1), True, (9,), admission, MaskRows(b"".join(rows)))
    assert worker.execute(StepPlan(1, (first,))).tokens == {0: (9, 4)}


def test_a_prefix_hit_reads_another_sequences_pages() -> None:
    worker = make_worker(4)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    first = PlanEntry(0, 0, tuple(prompt), (5, 2, 8), True, (), Admission((), 9, greedy(), 0, ()))
    worker.execute(StepPlan(1, (first,)))
    hit = Admission(tuple(prompt[:8]), 10, greedy(), 0, ())
    second = PlanEntry(1, 8, (7, 7), (5, 2, 11), True, (), hit)
    tokens = worker.execute(StepPlan(2, (second,), (0,))).tokens[1]
    assert list(tokens) == naive_tokens([*prompt[:8], 7, 7], 1)


def test_a_plan_without_entries_only_drops() -> None:
    worker = make_worker(4)
    entry = PlanEntry(0, 0, (1, 2), (0,), True, (), Admission((), 2, greedy(), 0, ()))
    worker.execute(StepPlan(1, (entry,)))
    result = worker.execute(StepPlan(2, (), dropped=(0,)))
    assert (result.step, result.tokens) == (2, {})
    with pytest.raises(EngineError, match="sequence 0"):
        worker.execute(StepPlan(3, (PlanEntry(0, 2, None),)))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (PlanEntry(3, 0, (1,), (0,)), "before its admission"),
        (PlanEntry(0, 1, None, (), True), "known tokens"),
        (PlanEntry(0, 6, (1,), (1,)), "no gap"),
        (PlanEntry(0, 3, (1, 2)), "pages for 4"),
        (PlanEntry(0, 3, (1,), (), True, (), Admission((), 1, greedy(), 0, ())), "second"),
    ],
)
def test_a_plan_that_contradicts_the_last_is_an_error(entry: PlanEntry, text: str) -> None:
    worker = make_worker(4)
    admission = Admission((), 9, greedy(), 0, ())
    worker.execute(StepPlan(1, (PlanEntry(0, 0, (1, 2, 3), (0,), False, (), admission),)))
    with pytest.raises(EngineError, match=text):
        worker.execute(StepPlan(2, (entry,)))
