"""The scheduler's plans, one situation at a time, against plans written out by hand."""

from __future__ import annotations

import pytest

from fathom.core.executor import Capacity
from fathom.core.scheduler import Scheduler, SchedulerConfig
from fathom.core.types import (
    PlanEntry,
    Request,
    SamplingParams,
    StepPlan,
    StepResult,
    TokenEvent,
    TokenLogprobs,
)
from fathom.errors import ConfigError, ContextLengthError, OverloadedError, RequestError
from tests.core.invariants import check_scheduler
from tests.core.naive import Rotating

EOS, STOP = 7, 8


def make(
    *,
    num_pages: int = 16,
    page_size: int = 4,
    budget: int = 16,
    max_sequences: int = 4,
    max_model_len: int = 64,
    max_queued: int = 64,
    num_drafts: int = 0,
    prefix_cache: bool = True,
) -> Scheduler:
    config = SchedulerConfig(
        max_model_len=max_model_len,
        max_queued=max_queued,
        num_drafts=num_drafts,
        prefix_cache=prefix_cache,
    )
    return Scheduler(config, Capacity(num_pages, page_size, budget, max_sequences, 2))


def ask(
    name: str,
    num_prompt: int,
    max_tokens: int | None = 8,
    *,
    first: int = 100,
    salt: str = "",
    priority: int = 0,
    min_tokens: int = 0,
    ignore_eos: bool = False,
    prompt_logprobs: int | None = None,
) -> Request:
    """A request; prompts with equal `first` share their prefix."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=(STOP,),
        ignore_eos=ignore_eos,
        prompt_logprobs=prompt_logprobs,
    )
    return Request(
        id=name,
        prompt_ids=tuple(range(first, first + num_prompt)),
        sampling=sampling,
        seed=0,
        eos_token_ids=(EOS,),
        cache_salt=salt,
        priority=priority,
    )


def planned(scheduler: Scheduler, now: float = 0.0) -> StepPlan:
    plan = scheduler.plan(now)
    assert plan is not None
    return plan


def commit(
    scheduler: Scheduler, plan: StepPlan, *token_ids: int, drafts: tuple[int, ...] = ()
) -> list[TokenEvent]:
    """Every sampling entry gets `token_ids` (1 where none are given) and proposes `drafts`."""
    tokens = {entry.id: token_ids or (1,) for entry in plan.entries if entry.samples}
    events = scheduler.commit(plan, StepResult(plan.step, tokens, dict.fromkeys(tokens, drafts)))
    check_scheduler(scheduler)
    return events


def step(scheduler: Scheduler, *token_ids: int) -> list[TokenEvent]:
    return commit(scheduler, planned(scheduler), *token_ids)


def parts(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(id, start, tokens) of each entry."""
    return [(entry.id, entry.start, entry.num_tokens) for entry in plan.entries]


def test_prompts_are_chunked_under_one_budget_and_decode_goes_first() -> None:
    scheduler = make(budget=6)
    scheduler.add(ask("a", 3), 0)
    scheduler.add(ask("b", 9, first=200), 0)
    first = planned(scheduler)
    assert parts(first) == [(0, 0, 3), (1, 0, 3)]
    assert [entry.samples for entry in first.entries] == [True, False]
    commit(scheduler, first)
    second = planned(scheduler)
    assert parts(second) == [(0, 3, 1), (1, 3, 5)]
    assert second.entries[0].tokens == (1,)
    commit(scheduler, second)
    assert parts(planned(scheduler)) == [(0, 4, 1), (1, 8, 1)]


def test_decode_of_younger_sequences_is_not_starved_by_an_older_prefill() -> None:
    scheduler = make(budget=4)
    scheduler.add(ask("young", 3), 0)
    step(scheduler)
    scheduler.add(ask("urgent", 12, first=200, priority=-1), 0)
    for round in range(3):
        plan = planned(scheduler)
        assert parts(plan) == [(0, 3 + round, 1), (1, 3 * round, 3)]
        commit(scheduler, plan)


def test_run_ahead_names_the_token_in_flight() -> None:
    scheduler = make()
    scheduler.add(ask("a", 3), 0)
    first, second = planned(scheduler), planned(scheduler)
    assert second.entries == (PlanEntry(0, 3, None),)
    assert commit(scheduler, first, 50)[0].token_ids == (50,)
    third = planned(scheduler)
    assert third.entries == (PlanEntry(0, 4, None, new_pages=third.entries[0].new_pages),)


def test_a_token_that_may_be_the_last_is_not_run_past() -> None:
    scheduler = make(max_model_len=8)
    scheduler.add(ask("one", 3, max_tokens=1), 0)
    scheduler.add(ask("context", 6, max_tokens=None, first=200), 0)
    first, second = planned(scheduler), planned(scheduler)
    assert parts(second) == [(1, 6, 1)]
    assert scheduler.plan(0) is None
    one, _ = commit(scheduler, first)
    assert one.finish_reason == "length"
    (context,) = commit(scheduler, second)
    assert context.finish_reason == "length"
    assert not scheduler.has_work


def test_what_was_computed_past_the_end_is_discarded() -> None:
    scheduler = make()
    scheduler.add(ask("a", 3), 0)
    first, ahead = planned(scheduler), planned(scheduler)
    (event,) = commit(scheduler, first, EOS)
    assert (event.token_ids, event.finish_reason, event.stop_token_id) == ((EOS,), "stop", None)
    assert scheduler.stats().kv_usage > 0, "its pages are still being written"
    assert commit(scheduler, ahead, 5) == []
    assert scheduler.stats().kv_usage == 0
    assert scheduler.stats().generated_tokens == 1


def test_stop_tokens_end_a_sequence_and_are_named() -> None:
    scheduler = make()
    scheduler.add(ask("a", 3), 0)
    (event,) = step(scheduler, STOP)
    assert (event.finish_reason, event.stop_token_id) == ("stop", STOP)


def test_ends_wait_for_min_tokens_and_eos_may_be_ignored() -> None:
    scheduler = make()
    scheduler.add(ask("min", 3, min_tokens=2), 0)
    scheduler.add(ask("ignore", 3, ignore_eos=True), 0)
    assert [e.finish_reason for e in step(scheduler, EOS)] == [None, None]
    assert [e.finish_reason for e in step(scheduler, EOS)] == ["stop", None]
    assert [e.finish_reason for e in step(scheduler, STOP)] == ["stop"]


def test_accepted_drafts_move_on_and_refused_ones_are_computed_again() -> None:
    scheduler = make(num_drafts=3)
    scheduler.add(ask("a", 3, max_tokens=9), 0)
    commit(scheduler, planned(scheduler), 20, drafts=(21, 22, 23))
    plan = planned(scheduler)
    assert parts(plan) == [(0, 3, 4)]
    assert (plan.entries[0].drafts, plan.num_drafts) == ((21, 22, 23), 3)
    assert scheduler.plan(0) is None, "drafts do not run ahead"
    (event,) = commit(scheduler, plan, 21, 22, 30, drafts=(31, 32, 33))
    assert event.token_ids == (21, 22, 30)
    plan = planned(scheduler)
    assert (plan.entries[0].start, plan.entries[0].tokens) == (6, (30,))
    (event,) = commit(scheduler, plan, 31, EOS, 33, 34, drafts=(1, 1, 1))
    assert (event.token_ids, event.finish_reason) == ((31, EOS), "stop")
    stats = scheduler.stats()
    assert (stats.draft_rounds, stats.draft_tokens, stats.accepted_tokens) == (2, 6, 5)


def test_drafts_stay_within_max_tokens() -> None:
    scheduler = make(num_drafts=3)
    scheduler.add(ask("a", 3, max_tokens=3), 0)
    commit(scheduler, planned(scheduler), 20, drafts=(21, 22, 23))
    plan = planned(scheduler)
    assert plan.entries[0].drafts == (21,)
    (event,) = commit(scheduler, plan, 21, 25)
    assert event.finish_reason == "length"


def test_masks_come_one_row_for_each_sampled_position() -> None:
    scheduler = make(num_drafts=3)
    scheduler.add(ask("a", 3), 0, Rotating(16, 4))
    first = planned(scheduler)
    assert first.entries[0].mask.read() == b"\x11\x11"
    # Outputs 1, 2 and 3 must be 1, 2 and 3 modulo 4; 7 would be, but ends the sequence.
    commit(scheduler, first, 4, drafts=(5, 6, EOS))
    plan = planned(scheduler)
    assert plan.entries[0].drafts == (5, 6)
    assert plan.entries[0].mask.read() == b"\x22\x22\x44\x44\x88\x88"
    commit(scheduler, plan, 9, drafts=(10, 12, 13))
    plan = planned(scheduler)
    assert plan.entries[0].drafts == (10,)
    assert plan.entries[0].mask.read() == b"\x44\x44\x88\x88"


def test_constrained_sequences_do_not_run_ahead_and_others_do() -> None:
    scheduler = make()
    scheduler.add(ask("free", 3), 0)
    scheduler.add(ask("bound", 3, first=200), 0, Rotating(16, 4))
    planned(scheduler)
    assert parts(planned(scheduler)) == [(0, 3, 1)]


def test_prefixes_are_shared_once_their_chunk_is_committed() -> None:
    scheduler = make(budget=8, num_pages=32)
    scheduler.add(ask("a", 20), 0)
    step(scheduler)
    scheduler.add(ask("b", 20), 0)
    plan = planned(scheduler)
    assert parts(plan) == [(0, 8, 8)], "the older prompt takes the budget"
    commit(scheduler, plan)
    plan = planned(scheduler)
    assert parts(plan) == [(0, 16, 4), (1, 16, 4)]
    admission = plan.entries[1].admission
    assert admission is not None
    assert admission.known_ids == tuple(range(100, 116))
    events = commit(scheduler, plan)
    assert [event.num_cached for event in events] == [0, 16]
    stats = scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens) == (40, 16, 40)


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = make()
    for name in "ab":
        scheduler.add(ask(name, 8, max_tokens=1), 0)
        plan = planned(scheduler)
        commit(scheduler, plan)
    assert parts(plan) == [(1, 4, 4)]


def test_salts_and_prompt_logprobs_do_not_share() -> None:
    scheduler = make()
    scheduler.add(ask("a", 8, max_tokens=1), 0)
    step(scheduler)
    scheduler.add(ask("salted", 8, max_tokens=1, salt="x"), 0)
    scheduler.add(ask("scored", 8, max_tokens=1, prompt_logprobs=0), 0)
    assert parts(planned(scheduler)) == [(1, 0, 8), (2, 0, 8)]


def test_generated_tokens_are_cached_too() -> None:
    scheduler = make()
    scheduler.add(ask("a", 3, max_tokens=3), 0)
    for _ in range(3):
        step(scheduler, 103)
    follow_up = Request(
        id="b", prompt_ids=(100, 101, 102, 103, 103), sampling=SamplingParams(), seed=0
    )
    scheduler.add(follow_up, 0)
    assert parts(planned(scheduler)) == [(1, 4, 1)]


def test_pages_that_refused_drafts_were_written_to_are_not_shared() -> None:
    scheduler = make(num_drafts=3)
    scheduler.add(ask("a", 6, max_tokens=9), 0)
    commit(scheduler, planned(scheduler), 106, drafts=(107, 108, 109))
    commit(scheduler, planned(scheduler), EOS)  # computed at 6 to 9, of which only 6 stands
    prompt_ids = (*range(100, 107), EOS, 1)
    follow_up = Request(id="b", prompt_ids=prompt_ids, sampling=SamplingParams(), seed=0)
    scheduler.add(follow_up, 0)
    assert parts(planned(scheduler)) == [(1, 4, 5)]


def test_pages_that_drafts_filled_past_the_end_are_not_shared() -> None:
    scheduler = make(num_drafts=3, page_size=7)
    scheduler.add(ask("a", 3, max_tokens=9), 0)
    commit(scheduler, planned(scheduler), 20, drafts=(21, EOS, 23))
    (event,) = commit(scheduler, planned(scheduler), 21, EOS, 23, 24)
    assert event.token_ids == (21, EOS)  # 6 tokens, though 7 positions were accepted


def test_the_last_in_order_is_preempted_and_keeps_its_tokens() -> None:
    scheduler = make(num_pages=4, page_size=2, prefix_cache=False)
    scheduler.add(ask("a", 3, max_tokens=5), 0)
    scheduler.add(ask("b", 2, max_tokens=4, first=200), 0)
    for _ in range(2):  # a: 5 known, 2 pages; b waits for a page to spare, then 1 page
        step(scheduler, 60)
    plan = planned(scheduler)
    assert parts(plan)[0] == (0, 4, 1)
    commit(scheduler, plan, 61)
    while scheduler.stats().preemptions == 0:
        plan = planned(scheduler)
        commit(scheduler, plan, 62)
    assert plan.dropped == (1,)
    assert [entry.id for entry in plan.entries] == [0]
    events = []
    while scheduler.has_work:
        plan = planned(scheduler)
        if plan.entries[0].id == 1 and plan.entries[0].admission:
            assert plan.entries[0].tokens is not None
            assert plan.entries[0].tokens[:2] == (200, 201)
            assert len(plan.entries[0].tokens) > 2
        events += commit(scheduler, plan, 63)
    assert events[-1].finish_reason == "length"


def test_a_victim_in_flight_is_waited_for_and_nothing_behind_is_planned() -> None:
    scheduler = make(num_pages=4, page_size=2, prefix_cache=False)
    scheduler.add(ask("a", 2, max_tokens=6), 0)
    scheduler.add(ask("b", 1, max_tokens=7, first=200), 0)
    plans = []
    for expected in ([(0, 0, 2), (1, 0, 1)], [(0, 2, 1), (1, 1, 1)], [(0, 3, 1), (1, 2, 1)]):
        plans.append(planned(scheduler))
        assert parts(plans[-1]) == expected
        if len(plans) > 1:
            commit(scheduler, plans.pop(0))
    # Now "a" needs a third page and all four are taken; "b" has room for one more token.
    assert scheduler.plan(0) is None
    commit(scheduler, plans.pop())
    plan = planned(scheduler)
    assert parts(plan) == [(0, 4, 1)]
    assert plan.dropped == (1,)
    assert scheduler.stats().preemptions == 1


def test_nobody_is_admitted_past_one_that_lacks_pages() -> None:
    scheduler = make(num_pages=7, page_size=1, num_drafts=3)
    scheduler.add(ask("a", 2, max_tokens=5), 0)
    first = planned(scheduler)
    scheduler.add(ask("b", 2, max_tokens=5, first=200), 0)
    second = planned(scheduler)
    commit(scheduler, first, 20, drafts=(21, 22, 23))
    scheduler.add(ask("c", 1, max_tokens=5, first=300), 0)
    # "a" needs 4 pages for its drafts, 3 are free, "b" is in flight, and "c" would fit.
    assert scheduler.plan(0) is None
    commit(scheduler, second)
    assert planned(scheduler).entries[0].id == 0
    assert scheduler.stats().preemptions == 1


def test_a_newcomer_leaves_a_page_to_each_one_that_runs() -> None:
    """Otherwise it would take the last page and be preempted for it in the next step."""
    scheduler = make(num_pages=4, page_size=2, prefix_cache=False)
    scheduler.add(ask("a", 4, max_tokens=2), 0)
    scheduler.add(ask("b", 4, max_tokens=2, first=200), 0)
    plan = planned(scheduler)
    assert parts(plan) == [(0, 0, 4)]
    commit(scheduler, plan)
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.stats().preemptions == 0


def test_a_lone_sequence_may_take_the_whole_pool() -> None:
    scheduler = make(num_pages=3, page_size=4, max_model_len=99)
    with pytest.raises(ContextLengthError, match="at most 11 tokens"):
        scheduler.add(ask("no", 12), 0)
    scheduler.add(ask("whole", 4, max_tokens=None), 0)
    num_tokens = 0
    while scheduler.has_work:
        (event,) = step(scheduler, 60)
        num_tokens += len(event.token_ids)
    assert (num_tokens, event.finish_reason) == (8, "length")


@pytest.mark.parametrize("is_together", [True, False])
def test_one_that_is_scored_needs_no_more_than_its_own_pages(is_together: bool) -> None:
    """It computes a prompt that others have computed, for it wants its log-probabilities. It used
    to publish its pages, and so to lock equal ones of the tree beside its own: where it needed the
    whole pool it preempted itself, and found them there again, for ever."""
    scheduler = make(num_pages=8, page_size=2, max_model_len=99)
    scheduler.add(ask("a", 6, max_tokens=1), 0)
    if not is_together:
        step(scheduler)
    scheduler.add(ask("b", 6, max_tokens=10, prompt_logprobs=0), 0)
    num_tokens = 0
    for _ in range(20):
        if scheduler.has_work:
            events = commit(scheduler, planned(scheduler), 60)
            num_tokens += sum(len(event.token_ids) for event in events if event.id == "b")
    assert num_tokens == 10
    assert scheduler.stats().preemptions == 0


def test_requests_sent_together_wait_for_the_one_that_computes_their_prefix() -> None:
    """Of four with 12 tokens in common one computes them, by chunks, even where the answers are
    still in flight; another request passes them meanwhile."""
    scheduler = make(budget=8, num_pages=99, max_sequences=5)
    for name in "abcd":
        scheduler.add(ask(name, 12 + ord(name) - ord("a") + 1), 0)
    scheduler.add(ask("x", 2, first=500), 0)
    first, second = planned(scheduler), planned(scheduler)
    assert [(e.id, e.num_tokens) for e in first.entries] == [(0, 8)]
    assert [(e.id, e.num_tokens) for e in second.entries] == [(0, 5), (4, 2)]
    commit(scheduler, first)
    commit(scheduler, second, 50, 50)
    third = planned(scheduler)
    started = [(e.id, e.start) for e in third.entries if e.admission]
    assert started == [(1, 12), (2, 12)], "only their own tokens are computed"


def test_priorities_go_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make(max_sequences=1)
    for name, priority in (("a", 1), ("b", 1), ("c", 0)):
        scheduler.add(ask(name, 2, max_tokens=1, priority=priority), 0)
    order = [step(scheduler)[0].id for _ in range(3)]
    assert order == ["c", "a", "b"]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = make(max_queued=2)
    for name in "ab":
        scheduler.add(ask(name, 2), 0)
    with pytest.raises(OverloadedError, match="2 requests waiting") as refused:
        scheduler.add(ask("c", 2), 0)
    assert refused.value.retry_after_s == 1, "nothing is known of its pace"
    planned(scheduler, now=10)
    for name in "cd":
        scheduler.add(ask(name, 2), 10)
    with pytest.raises(OverloadedError) as refused:
        scheduler.add(ask("e", 2), 20)
    assert refused.value.retry_after_s == 10, "two left the queue in 10 s"


def test_a_request_id_can_be_used_again_once_it_has_ended() -> None:
    scheduler = make()
    scheduler.add(ask("a", 2, max_tokens=1), 0)
    with pytest.raises(RequestError, match="in use"):
        scheduler.add(ask("a", 2), 0)
    step(scheduler)
    scheduler.add(ask("a", 2), 0)


def test_a_budget_below_one_sequences_drafts_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4"):
        make(budget=3, num_drafts=3)


def test_cancel_frees_pages_at_once_or_after_the_step_in_flight() -> None:
    scheduler = make(max_sequences=1)
    for name in "abc":
        scheduler.add(ask(name, 2), 0)
    plan = planned(scheduler)
    for name in "ab":
        event = scheduler.cancel(name)
        assert event is not None
        assert event.finish_reason == "abort"
        assert scheduler.cancel(name) is None
        check_scheduler(scheduler)
    assert scheduler.stats().kv_usage > 0
    assert commit(scheduler, plan) == []
    assert scheduler.stats().kv_usage == 0
    plan = planned(scheduler)
    assert parts(plan) == [(2, 0, 2)]
    assert plan.dropped == (0,), "workers never knew of b"


def test_cancel_waits_for_all_plans_in_flight() -> None:
    scheduler = make()
    scheduler.add(ask("a", 2), 0)
    plans = [planned(scheduler), planned(scheduler)]
    scheduler.cancel("a")
    commit(scheduler, plans[0])
    assert scheduler.stats().kv_usage > 0
    commit(scheduler, plans[1])
    assert scheduler.stats().kv_usage == 0


def test_fail_all_answers_everybody() -> None:
    scheduler = make(max_sequences=1)
    for name in "ab":
        scheduler.add(ask(name, 2), 0)
    step(scheduler)
    events = scheduler.fail_all("the device is gone")
    assert [(e.id, e.finish_reason, e.error) for e in events] == [
        ("a", "error", "the device is gone"),
        ("b", "error", "the device is gone"),
    ]
    assert not scheduler.has_work
    check_scheduler(scheduler)


def test_the_first_event_tells_the_queueing_time() -> None:
    scheduler = make()
    scheduler.add(ask("a", 2), 0)
    events = commit(scheduler, planned(scheduler, now=2.5))
    events += step(scheduler)
    assert [event.queued_s for event in events] == [2.5, None]


def test_prompt_logprobs_come_once_with_the_first_token() -> None:
    scheduler = make(budget=2)
    scheduler.add(ask("a", 4, prompt_logprobs=0), 0)
    rows = tuple(TokenLogprobs(100 + i, -1.0, 1, ()) for i in range(4))
    first = planned(scheduler)
    result = StepResult(first.step, {}, prompt_logprobs={0: rows[1:2]})
    assert scheduler.commit(first, result) == []
    second = planned(scheduler)
    result = StepResult(second.step, {0: (1,)}, prompt_logprobs={0: rows[2:]})
    (event,) = scheduler.commit(second, result)
    assert event.prompt_logprobs == rows[1:]
    assert step(scheduler)[0].prompt_logprobs == ()
