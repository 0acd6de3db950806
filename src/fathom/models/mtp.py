"""Multi-token prediction: a layer that guesses the token after the next one.

Source: DeepSeek-V3 report (arXiv 2412.19437), section 2.2. `eh_proj` takes the embedding first, as
the checkpoints' weights want it (the report writes it second). The main model's hidden state comes
in after its final norm, and the layer's own output goes out after its own (`shared_head.norm`), so
that one layer can be fed its own output to draft several tokens.
"""

from __future__ import annotations

import torch

from fathom.models.deepseek_v3 import DeepseekV3
from fathom.models.layers import DecoderLayer
from fathom.models.params import Params, ParamSource
from fathom.ops.batch import PagedBatch


class Mtp:
    """MTP layer `index` of a model, at `model.layers.{num_layers + index}` of its checkpoint.

    Embedding and head are the main model's. What is taken from `params` is removed. Raises:
    CheckpointError where a parameter is absent or of another shape.
    """

    def __init__(self, base: DeepseekV3, params: Params, *, index: int = 0) -> None:
        self._base, self._eps = base, base.spec.rms_norm_eps
        self._cache_layer = base.spec.num_layers + index
        hidden = base.spec.hidden_size
        source = ParamSource(params, base.context.ops, base.dtype)
        prefix = f"model.layers.{self._cache_layer}"
        self._embed_norm = source.tensor(f"{prefix}.enorm.weight", (hidden,))
        self._hidden_norm = source.tensor(f"{prefix}.hnorm.weight", (hidden,))
        self._project = source.matrix((f"{prefix}.eh_proj.weight",), ((hidden, 2 * hidden),))
        self._layer = DecoderLayer(base.context, source, self._cache_layer)
        self._norm = source.tensor(f"{prefix}.shared_head.norm.weight", (hidden,))
        self._vocabulary = base.vocabulary
        # The checkpoints repeat the embedding and the head here (V3 report, section 2.2).
        for name in ("embed_tokens", "shared_head.head"):
            copy = f"{prefix}.{name}.weight"
            if copy in params:
                del params[copy]  # unread, unlike with pop

    @torch.no_grad()
    def forward(
        self,
        next_token_ids: torch.Tensor,
        hidden: torch.Tensor,
        batch: PagedBatch,
        kv_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states [T, hidden] for `logits`, or for the next draft.

        Shapes: next_token_ids [T] int64, the token that follows each row's; hidden [T, hidden], of
        the row's own position, from `DeepseekV3.forward` or from this; kv_cache as there, of which
        layer num_layers + index is written and read. The batch's positions and slots are those of
        the rows' own tokens. T may be 0.
        """
        if next_token_ids.numel() == 0:
            return hidden
        ops = self._base.context.ops
        embedded = self._vocabulary.embed(next_token_ids)
        normed = (
            ops.rms_norm(embedded, self._embed_norm, eps=self._eps),
            ops.rms_norm(hidden, self._hidden_norm, eps=self._eps),
        )
        residual = ops.linear(torch.cat(normed, dim=-1), self._project)
        step = self._base.step_state(batch)
        update = self._layer(None, residual, kv_cache[self._cache_layer], step)
        return ops.rms_norm(update, self._norm, eps=self._eps, residual=residual)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab] float32: scores of the token two after each row's; on every rank."""
        return self._vocabulary.logits(hidden)
