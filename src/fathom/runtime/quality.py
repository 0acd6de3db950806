"""Compares what two loaded models predict, over the whole vocabulary, at every position of texts.

The models are those that executors run: the same parameters, backend and paged cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fathom.core.executor import Executor
from fathom.errors import ConfigError
from fathom.ops.comm import SingleRank
from fathom.runtime.batch import PageTable, Span
from fathom.runtime.build import (
    RankModel,
    load_rank,
    local_executor,
    make_worker,
    start_threads,
)
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.spec.quality import Document, Positions

# Positions whose logits are held at once, in float64.
_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a model predicts of texts, kept as hidden states: logits take far more memory.

    Shapes: states [P, hidden]; target_ids [P] int64, the tokens that do follow. `logits` makes
    [R, V] float32 of some states.
    """

    states: torch.Tensor
    target_ids: torch.Tensor
    logits: Callable[[torch.Tensor], torch.Tensor]


class LoadedModel:
    """The model of a plan, on one rank, in this process. One at a time uses the CPU's threads:
    the one that was made last.

    Raises: ConfigError for a plan of several ranks; CheckpointError, CapacityError.
    """

    def __init__(self, plan: DeploymentPlan) -> None:
        if plan.layout.world_size > 1:
            raise ConfigError("quality is measured on one rank", found=str(plan.layout.world_size))
        start_threads(plan, plan.threads)
        self._plan = plan
        self._rank = load_rank(plan, Shard(), SingleRank(), torch.device(plan.device))

    def predict(self, documents: Sequence[Document]) -> Predictions:
        """Predictions of every scored token. Raises: ConfigError for a text over the context."""
        return predict(self._plan, self._rank, documents)

    def executor(self) -> Executor:
        """An executor of this model; the caller closes it."""
        return local_executor(self._plan, make_worker(self._plan, self._rank, SingleRank()))


@torch.inference_mode()
def predict(plan: DeploymentPlan, rank: RankModel, documents: Sequence[Document]) -> Predictions:
    """Predictions of every scored token of `documents`, in their order, each by itself.

    Raises: ConfigError for a document that is longer than the context.
    """
    pages, states = PageTable(plan.page_size), []
    model, longest = rank.model.main, min(plan.max_model_len, plan.kv_tokens)
    for document in documents:
        length = len(document.token_ids)
        if length > longest:
            raise ConfigError(
                "a text is longer than the context", found=f"{length} tokens", wanted=str(longest)
            )
        row = pages.add()
        pages.extend(row, range(-(-length // plan.page_size)))
        for start in range(0, length, plan.max_batch_tokens):
            ids = document.token_ids[start : start + plan.max_batch_tokens]
            token_ids, batch = pages.batch(ids, [Span(row, start, len(ids))], model.device)
            hidden = model.forward(token_ids, batch, rank.kv_cache)
            first = max(document.first_scored - 1 - start, 0)
            states.append(hidden[first : length - 1 - start].clone())
        pages.remove(row)
    targets = [one for document in documents for one in document.token_ids[document.first_scored :]]
    return Predictions(
        torch.cat(states),
        torch.tensor(targets, dtype=torch.int64, device=model.device),
        model.vocabulary.logits,  # lets go of the layers
    )


@torch.inference_mode()
def compare(reference: Predictions, model: Predictions) -> Positions:
    """Position by position, in float64. The predicted tokens must be the same.

    Source: KL(p || q) = sum p (log p - log q), Kullback and Leibler 1951.
    """
    assert reference.target_ids.equal(model.target_ids)
    kl, agrees, reference_losses, losses = [], [], [], []
    for start in range(0, len(model.target_ids), _ROWS):
        part = slice(start, start + _ROWS)
        p, q = (_log_probabilities(one, part) for one in (reference, model))
        target = model.target_ids[part, None]
        kl.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
        agrees.append(p.argmax(-1) == q.argmax(-1))
        reference_losses.append(-p.gather(1, target).squeeze(1))
        losses.append(-q.gather(1, target).squeeze(1))
    return Positions(
        tuple(torch.cat(kl).tolist()),
        tuple(torch.cat(agrees).tolist()),
        tuple(torch.cat(reference_losses).tolist()),
        tuple(torch.cat(losses).tolist()),
    )


def _log_probabilities(predictions: Predictions, part: slice) -> torch.Tensor:
    return predictions.logits(predictions.states[part]).double().log_softmax(-1)
