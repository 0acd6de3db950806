"""The state of one request in the core. Owned by the scheduler; nobody else writes it.

               plan: admitted                  commit: last token
    WAITING ────────────────────> RUNNING ────────────────────────> FINISHED ──> forgotten, once
       ^                             │                                  ^        no plan in flight
       └──────── plan: preempted ────┘                                  │        mentions it
       │           (not in flight)   │                                  │
       └─────────────────────────────┴──────── cancel, fail ────────────┘

There are no phases of prefill and decode. `computed` tokens chase known tokens:

    tokens     p p p p p p p p g g g          known: prompt and generated
                                    . .       `pending`: sampled by plans in flight, still unknown
    computed   |-------------->|              positions given to the executor, in flight included

Far behind is a prefill chunk, one behind is a decode step, and a prefix hit starts ahead.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from enum import Enum, auto

from fathom.core.constraint import Constraint
from fathom.core.loop_guard import LoopGuard, LoopLimits
from fathom.core.policy import OrderKey
from fathom.core.radix import Node
from fathom.core.types import Admission, FinishReason, Mask, Request, TokenLogprobs


class Status(Enum):
    """Where a sequence stands; the head of this file draws how it moves."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One request's tokens, pages and progress.

    `limit` is the number of tokens, prompt included, at which the sequence ends. `pages[i]` holds
    positions i * page_size onwards, the `untold_pages` last, which workers do not know yet; `path`
    are the prefix tree's nodes for the leading full ones. `promised` leading tokens are in the tree
    of prefixes that others may wait for. `num_told` of the tokens, prompt included, have been in an
    event: what a grammar forces before the first sample waits for it.
    """

    __slots__ = (
        "computed",
        "constraint",
        "drafts",
        "end_ids",
        "id",
        "in_flight",
        "key",
        "limit",
        "loop_guard",
        "num_cached",
        "num_prompt",
        "num_told",
        "pages",
        "path",
        "pending",
        "promised",
        "prompt_logprobs",
        "queued_s",
        "request",
        "runs_ahead",
        "status",
        "stop_token_id",
        "tokens",
        "untold_pages",
    )

    def __init__(
        self,
        id: int,
        request: Request,
        key: OrderKey,
        *,
        limit: int,
        runs_ahead: bool,
        constraint: Constraint | None,
        loops: LoopLimits | None = None,
    ) -> None:
        self.id, self.request, self.key = id, request, key
        self.limit, self.runs_ahead, self.constraint = limit, runs_ahead, constraint
        asked = request.sampling.repetition_detection and not request.sampling.ignore_eos
        self.loop_guard = LoopGuard(loops) if loops and loops.num_tokens and asked else None
        self.status = Status.WAITING
        self.tokens = list(request.prompt_ids)
        self.num_prompt = self.num_told = len(request.prompt_ids)
        eos = () if request.sampling.ignore_eos else request.eos_token_ids
        self.end_ids = frozenset((*eos, *request.sampling.stop_token_ids))
        self.computed = 0
        self.pending = 0
        self.in_flight = 0
        self.drafts: tuple[int, ...] = ()
        self.pages: list[int] = []
        self.untold_pages: tuple[int, ...] = ()
        self.path: list[Node] = []
        self.promised = 0
        self.num_cached = 0
        self.queued_s: float | None = None
        self.stop_token_id: int | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []

    @property
    def num_outputs(self) -> int:
        """Tokens generated and known."""
        return len(self.tokens) - self.num_prompt

    def admission(self) -> Admission:
        """What a worker must know before the sequence's first entry, which starts at `computed`."""
        request = self.request
        return Admission(
            tuple(self.tokens[: self.computed]),
            self.num_prompt,
            request.sampling,
            request.seed,
            request.eos_token_ids,
        )

    def extend(self, accepted: Items[int]) -> FinishReason | None:
        """Append tokens up to the first that ends the sequence; gives why, None to go on."""
        sampling, constraint = self.request.sampling, self.constraint
        for token in accepted:
            if constraint is not None and constraint.error:
                return "error"  # so that the token was sampled under no mask of the grammar's
            self.tokens.append(token)
            is_enough = self.num_outputs >= sampling.min_tokens
            # A complete answer ends, however many tokens were asked for: nothing could follow.
            if token in self.end_ids and (is_enough or (constraint and constraint.is_complete)):
                is_eos = token in self.request.eos_token_ids and not sampling.ignore_eos
                self.stop_token_id = None if is_eos else token
                return "stop"
            if len(self.tokens) >= self.limit:
                return "length"
            if self._loops() and self.num_outputs >= sampling.min_tokens:
                return "repetition"
            if constraint is not None:
                constraint.accept(token)
        return "error" if constraint is not None and constraint.error else None

    def _loops(self) -> bool:
        guard = self.loop_guard
        return guard is not None and guard.is_loop(self.tokens, self.num_prompt)

    def jump(self) -> tuple[FinishReason | None, int]:
        """Append what the constraint forces, without asking the model; gives why that ends the
        sequence, None to go on, and how many tokens it was.

        Where log-probabilities are asked for, only the model can give them, and nothing is forced.
        """
        if self.constraint is None or self.request.sampling.logprobs is not None:
            return None, 0
        num_before = len(self.tokens)
        finish_reason = None
        while finish_reason is None and (forced := self.constraint.forced()):
            finish_reason = self.extend(forced)
        return finish_reason, len(self.tokens) - num_before

    def begin(self) -> int:
        """Append what the constraint forces before the first sample; gives how many tokens.

        They are computed with the prompt. At least one token is left to the model.
        """
        if self.constraint is None or self.request.sampling.logprobs is not None:
            return 0
        forced = self.constraint.forced()[: max(0, self.limit - len(self.tokens) - 1)]
        for count, token in enumerate(forced):
            if token in self.end_ids:
                return count
            self.tokens.append(token)
            self.constraint.accept(token)
        return len(forced)

    def masked_drafts(self) -> tuple[tuple[int, ...], Mask | None]:
        """The drafts that the constraint lets through, and the mask of every position.

        A draft that the constraint forbids would be refused by the sampler anyway, and one that
        ends the sequence leaves nothing to constrain: both cut the drafts there.
        """
        drafts = self.drafts[: max(0, self.limit - len(self.tokens) - 1)]
        if self.constraint is None:
            return drafts, None
        ends = (index for index, token in enumerate(drafts) if token in self.end_ids)
        drafts = drafts[: next(ends, len(drafts))]
        drafts = drafts[: self.constraint.count_allowed(drafts)]
        return drafts, self.constraint.mask(drafts)

    def rewind(self) -> None:
        """Back to waiting, with nothing computed; the tokens generated so far stay."""
        self.status = Status.WAITING
        self.computed = 0
        self.untold_pages = ()
        if self.num_told == self.num_prompt:
            self.prompt_logprobs.clear()  # the prompt will be scored anew
