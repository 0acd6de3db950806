"""Small decode steps repeated from recordings of their kernel calls, as CUDA graphs are on GPUs.

A step that computes one token for each of a few sequences differs from the last one of its size in
nothing but numbers: token ids, places in the cache, lengths, angles. They are put into the tensors
of the recording, and its calls run again. The same kernels on the same numbers: no bit changes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.layers import StepState
from fathom.ops.api import Angles
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.backends.cpu.recording import Recording, RecordingMemory
from fathom.ops.batch import PagedBatch

MAX_SEQUENCES = 64  # the host's share of larger steps is small
MAX_RECORDINGS = 8


class ReplayedModel:
    """A model on the CPU kernels whose small decode steps are replayed, of at most `max_sequences`
    sequences.

    What `forward` gives stands until the next call: recordings share their memory.
    """

    def __init__(self, model: DeepseekV3, ops: CpuBackend, max_sequences: int) -> None:
        self._model, self._ops = model, ops
        self._memory = RecordingMemory(min(MAX_SEQUENCES, max_sequences))
        self._starts = torch.arange(self._memory.rows + 1)
        self._steps: OrderedDict[tuple[int, int], _RecordedStep] = OrderedDict()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the model's."""
        return self._model.logits(hidden)

    def forward(
        self, token_ids: torch.Tensor, batch: PagedBatch, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        """As the model's."""
        size = len(batch.query_lens)
        if not 0 < size <= self._memory.rows or batch.query_lens != (1,) * size:
            return self._model.forward(token_ids, batch, kv_cache)
        width = 1 << (batch.page_table.shape[1] - 1).bit_length()
        angles = self._model.angles(batch.positions)
        step = self._steps.pop((size, width), None)
        if step is not None and step.kv_cache is kv_cache:
            step.set(token_ids, batch, angles)
            step.recording.replay()
        else:
            starts = self._starts[: size + 1]
            with self._ops.record(self._memory) as recording:
                step = _RecordedStep(recording, starts, width, batch.page_size, angles)
                step.set(token_ids, batch, angles)
                step.run(self._model, self._ops, kv_cache)
        self._steps[size, width] = step
        if len(self._steps) > MAX_RECORDINGS:
            self._steps.popitem(last=False)
        return step.hidden


class _RecordedStep:
    """A recording, the tensors that its calls read, and the hidden states that they give."""

    hidden: torch.Tensor
    kv_cache: torch.Tensor

    def __init__(
        self,
        recording: Recording,
        starts: torch.Tensor,
        width: int,
        page_size: int,
        angles: Angles,
    ) -> None:
        size, new = len(starts) - 1, recording.new
        self.recording = recording
        self._token_ids = new(size, dtype=torch.int64)
        self._batch = PagedBatch(
            positions=new(size, dtype=torch.int64),
            slots=new(size, dtype=torch.int64),
            query_starts=starts,
            context_lens=new(size, dtype=torch.int64),
            page_table=new(size, width, dtype=torch.int64),
            query_lens=(1,) * size,
            context_lens_host=(1,) * size,
            page_size=page_size,
        )
        cos, sin = (new(*one.shape, dtype=one.dtype) for one in (angles.cos, angles.sin))
        self._angles = Angles(cos, sin, angles.is_interleaved)

    def set(self, token_ids: torch.Tensor, batch: PagedBatch, angles: Angles) -> None:
        """Take over a step's numbers. What the page table has beyond the batch's is never read."""
        own = self._batch
        self._token_ids.copy_(token_ids)
        self._angles.cos.copy_(angles.cos)
        self._angles.sin.copy_(angles.sin)
        own.slots.copy_(batch.slots)
        own.context_lens.copy_(batch.context_lens)
        own.page_table[:, : batch.page_table.shape[1]].copy_(batch.page_table)

    def run(self, model: DeepseekV3, ops: CpuBackend, kv_cache: torch.Tensor) -> None:
        """Run the step, while it is recorded."""
        state = StepState(self._batch, self._angles, ops.mla_plan(self._batch, model.spec.mla))
        self.hidden = model.run(self._token_ids, state, kv_cache)
        self.kv_cache = kv_cache
