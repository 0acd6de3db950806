"""Whole runs of the engine core in random settings, against the naive loop's tokens."""

from __future__ import annotations

from random import Random

import pytest

from fathom.core.executor import Capacity
from fathom.core.loop import EngineCore
from fathom.core.scheduler import SchedulerConfig
from fathom.core.types import CoreStats, Request, SamplingParams
from tests.core.naive import naive_answer
from tests.core.simulated import PseudoModel, SimulatedExecutor

MODEL = PseudoModel(vocab_size=50, eos_rate=0.02, draft_accuracy=0.8)
EOS = 7
MAX_MODEL_LEN = 40
SHARED = tuple(Random(0).choices(range(3), k=40))


def draw_request(random: Random, index: int, before: list[Request]) -> Request:
    """A request whose prompt begins like the others', or goes on from another's answer."""
    num_shared, num_own = random.randint(0, 12), random.randint(1, 8)
    shared = SHARED[:num_shared]
    if before and random.random() < 0.4:
        turn = random.choice(before)
        shared = (turn.prompt_ids + naive_answer(turn, MODEL, MAX_MODEL_LEN)[0])[:20]
    return Request(
        id=str(index),
        prompt_ids=shared + tuple(random.choices(range(3), k=num_own)),
        sampling=SamplingParams(
            temperature=random.choice([0.0, 1.0]),
            max_tokens=random.choice([1, 2, 9, None]),
            prompt_logprobs=random.choice([None, None, None, 0]),
        ),
        seed=index,
        eos_token_ids=(EOS,),
        cache_salt=random.choice(["", "", "tenant"]),
        priority=random.choice([0, 0, 1]),
    )


def run(random: Random, depth: int, num_drafts: int) -> CoreStats:
    """Requests that arrive while others run, some cancelled; asserts on every answer."""
    page_size = random.choice([1, 2, 4])
    capacity = Capacity(
        random.randint(40, 70) // page_size, page_size, random.randint(4, 24), 6, depth
    )
    executor = SimulatedExecutor(capacity, model=MODEL)
    config = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        num_drafts=num_drafts,
        run_ahead=depth > 1,
        prefix_cache=random.random() < 0.8,
    )
    core = EngineCore(executor, config)
    requests: list[Request] = []
    for index in range(14):
        requests.append(draw_request(random, index, requests))
    arrivals = requests[::-1]
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    scored: dict[str, list[int]] = {request.id: [] for request in requests}
    reasons: dict[str, str] = {}
    while core.has_work or arrivals:
        while arrivals and random.random() < 0.4:
            core.add(arrivals.pop(), executor.clock.now_s)
        if random.random() < 0.02 and answers:
            event = core.cancel(random.choice(requests).id)
            if event is not None:
                reasons[event.id] = "abort"
        for event in core.step(executor.clock.now_s):
            assert event.id not in reasons, "news of a request that has ended"
            answers[event.id] += event.token_ids
            scored[event.id] += [row.token_id for row in event.prompt_logprobs]
            if event.finish_reason is not None:
                reasons[event.id] = event.finish_reason
    for request in requests:
        expected, reason = naive_answer(request, MODEL, MAX_MODEL_LEN)
        answer = tuple(answers[request.id])
        if reasons.get(request.id) == "abort":
            assert answer == expected[: len(answer)]
        else:
            assert (answer, reasons[request.id]) == (expected, reason)
            is_scored = request.sampling.prompt_logprobs is not None
            assert tuple(scored[request.id]) == (request.prompt_ids[1:] if is_scored else ())
    return core.stats()


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_every_schedule_gives_the_naive_loops_tokens(depth: int, num_drafts: int) -> None:
    stats = [run(Random(seed), depth, num_drafts) for seed in range(40)]
    assert all((s.running, s.waiting, s.kv_usage) == (0, 0, 0) for s in stats)
    # The settings must have led where the mistakes would be.
    assert sum(s.preemptions for s in stats) >= 10
    assert sum(s.prefix_hits for s in stats) >= 200
    assert bool(sum(s.accepted_tokens for s in stats)) == bool(num_drafts)


def test_salts_never_share() -> None:
    """Equal prompts under different salts hit nothing; under one salt they do."""
    for salts, num_hits in ((("a", "b"), 0), (("a", "a"), 8)):
        executor = SimulatedExecutor(Capacity(16, 4, 64, 4, 2), model=MODEL)
        core = EngineCore(executor, SchedulerConfig(max_model_len=MAX_MODEL_LEN))
        for index, salt in enumerate(salts):
            sampling = SamplingParams(max_tokens=1)
            core.add(
                Request(
                    id=str(index),
                    prompt_ids=SHARED[:10],
                    sampling=sampling,
                    seed=0,
                    cache_salt=salt,
                ),
                0.0,
            )
            while core.has_work:
                core.step(0.0)
        assert core.stats().prefix_hits == num_hits
