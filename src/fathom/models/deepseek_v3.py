"""The forward pass of DeepSeek-V2, V2-Lite, V3 and R1 on one rank.

Tests hold the logits equal to transformers' DeepseekV2ForCausalLM and DeepseekV3ForCausalLM. Where
those differ from DeepSeek's own code, DeepSeek's decides: V2's routing weights are normalised where
its config says so (transformers 5 ignores `norm_topk_prob` there), and experts outside the chosen
groups can never win (transformers masks V2's with 0, which ties with a score that underflowed).
"""

from __future__ import annotations

import torch

from fathom.errors import ConfigError
from fathom.models.layers import Context, DecoderLayer, RotaryAngles, StepState, VocabularyRows
from fathom.models.params import Params, ParamSource
from fathom.ops.api import Angles, Backend
from fathom.ops.batch import PagedBatch
from fathom.ops.comm import Communicator
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Shard


class DeepseekV3:
    """The main model, without multi-token prediction.

    `params` are this rank's slices by checkpoint name; those that the model takes are removed from
    the dictionary. The device is theirs.

    Raises: CheckpointError where a parameter is absent or has the wrong shape; ConfigError where
    `shard` and `comm` disagree.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Params,
        *,
        ops: Backend,
        comm: Communicator,
        shard: Shard,
        dtype: torch.dtype,
    ) -> None:
        _check_ranks(comm, shard)
        self.spec, self.dtype = spec, dtype
        self.context = Context(spec, ops, comm, shard.layout.tp)
        source = ParamSource(params, ops, dtype)
        self.vocabulary = self._load_vocabulary(source)
        self.device = self.vocabulary.embedding.device
        self._layers = [DecoderLayer(self.context, source, i) for i in range(spec.num_layers)]
        self._norm = source.tensor("model.norm.weight", (spec.hidden_size,))
        self._angles = RotaryAngles(spec, self.device)

    def _load_vocabulary(self, source: ParamSource) -> VocabularyRows:
        shape = (self.spec.vocab_size // self.context.tp, self.spec.hidden_size)
        embedding = source.tensor("model.embed_tokens.weight", shape)
        if self.spec.tie_embeddings:
            head = self.context.ops.hold([embedding], dtype=self.dtype)
        else:
            head = source.matrix(("lm_head.weight",), (shape,))
        return VocabularyRows(self.context, embedding, head)

    def step_state(self, batch: PagedBatch) -> StepState:
        """What the layers need to know of a step."""
        plan = self.context.ops.mla_plan(batch, self.spec.mla)
        return StepState(batch, self.angles(batch.positions), plan)

    def angles(self, positions: torch.Tensor) -> Angles:
        """The rotary angles of positions [T] int64."""
        return self._angles.at(positions)

    @torch.no_grad()
    def forward(
        self, token_ids: torch.Tensor, batch: PagedBatch, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states after the final norm [T, hidden], what `logits` and an MTP layer take.

        Shapes: token_ids [T] int64; kv_cache [layers, pages, page_size, latent_dim], of which the
        first num_layers are written and read. T may be 0.
        """
        if token_ids.numel() == 0:
            return kv_cache.new_empty((0, self.spec.hidden_size), dtype=self.dtype)
        return self.run(token_ids, self.step_state(batch), kv_cache)

    def run(self, token_ids: torch.Tensor, step: StepState, kv_cache: torch.Tensor) -> torch.Tensor:
        """`forward` of at least one token, with a step's state: ops alone, no other arithmetic."""
        residual = self.vocabulary.embed(token_ids)
        update = None
        for layer, cache in zip(self._layers, kv_cache, strict=False):
            update = layer(update, residual, cache, step)
        return self.context.ops.rms_norm(
            residual if update is None else update,
            self._norm,
            eps=self.spec.rms_norm_eps,
            residual=None if update is None else residual,
        )

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab] float32 on every rank, of hidden states [R, hidden] from `forward`."""
        return self.vocabulary.logits(hidden)


def _check_ranks(comm: Communicator, shard: Shard) -> None:
    if (comm.rank, comm.world_size) != (shard.tp_rank, shard.layout.tp):
        raise ConfigError(
            "shard",
            found=f"rank {shard.tp_rank} of {shard.layout.tp}",
            wanted=f"the communicator's, rank {comm.rank} of {comm.world_size}",
        )
