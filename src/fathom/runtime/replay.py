"""Small decode steps repeated from recordings of their kernel calls, as CUDA graphs are on GPUs.

A step that computes one token for each of a few sequences differs from the last one of its size in
nothing but numbers: token ids, places in the cache, lengths, angles. They are put into the tensors
of the recording, and its calls run again. The same kernels on the same numbers: no bit changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.layers import StepState
from fathom.ops.api import Angles
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.batch import PagedBatch

MAX_SEQUENCES = 64  # the host's share of larger steps is small
MAX_RECORDINGS = 8


class ReplayedModel:
    """A model on the CPU kernels whose small decode steps are replayed.

    What `forward` gives stands until the next call.
    """

    def __init__(self, model: DeepseekV3, ops: CpuBackend) -> None:
        self._model, self._ops = model, ops
        self._steps: OrderedDict[tuple[int, int], _RecordedStep] = OrderedDict()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the model's."""
        return self._model.logits(hidden)

    def forward(
        self, token_ids: torch.Tensor, batch: PagedBatch, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        """As the model's."""
        size = len(batch.query_lens)
        if not 0 < size <= MAX_SEQUENCES or token_ids.shape[0] != size or 0 in batch.query_lens:
            return self._model.forward(token_ids, batch, kv_cache)
        width = 1 << (batch.page_table.shape[1] - 1).bit_length()
        step = self._steps.pop((size, width), None)
        if step is None:
            step = _RecordedStep(self._model, size, width, batch.page_size)
        self._steps[size, width] = step
        if len(self._steps) > MAX_RECORDINGS:
            self._steps.popitem(last=False)
        return step.run(self._ops, token_ids, batch, kv_cache)


class _RecordedStep:
    """One recording and the tensors that its calls read: `size` sequences, `width` pages each."""

    def __init__(self, model: DeepseekV3, size: int, width: int, page_size: int) -> None:
        self._model = model
        self._token_ids = torch.zeros(size, dtype=torch.int64)
        self._batch = PagedBatch(
            positions=torch.zeros(size, dtype=torch.int64),
            slots=torch.zeros(size, dtype=torch.int64),
            query_starts=torch.arange(size + 1),
            context_lens=torch.ones(size, dtype=torch.int64),
            page_table=torch.zeros(size, width, dtype=torch.int64),
            query_lens=(1,) * size,
            context_lens_host=(1,) * size,
            page_size=page_size,
        )
        angles = model.angles(self._batch.positions)
        self._angles = Angles(angles.cos.clone(), angles.sin.clone(), angles.is_interleaved)
        self._replay: Callable[[], None] | None = None
        self._kv_cache: torch.Tensor | None = None
        self._hidden = torch.empty(0)

    def run(
        self, ops: CpuBackend, token_ids: torch.Tensor, batch: PagedBatch, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        """The step's hidden states; recorded at the first call, and where the cache is another."""
        angles, own = self._model.angles(batch.positions), self._batch
        self._angles.cos.copy_(angles.cos)
        self._angles.sin.copy_(angles.sin)
        self._token_ids.copy_(token_ids)
        own.slots.copy_(batch.slots)
        own.context_lens.copy_(batch.context_lens)
        own.page_table[:, : batch.page_table.shape[1]].copy_(batch.page_table)
        if self._replay is None or self._kv_cache is not kv_cache:
            plan = ops.mla_plan(own, self._model.spec.mla)
            with ops.record() as recording:
                state = StepState(own, self._angles, plan)
                self._hidden = self._model.run(self._token_ids, state, kv_cache)
            self._replay, self._kv_cache = recording.replay, kv_cache
        else:
            self._replay()
        return self._hidden
