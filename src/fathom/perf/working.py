"""What a step needs beside weights and KV, for each backend that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fathom.perf.held_weights import Holding
from fathom.perf.kernel_memory import KernelStep
from fathom.spec.families import Model
from fathom.spec.formats import BFLOAT16, Format
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout
from fathom.spec.plan import MemoryLine

# The reference backend pads lengths by up to a quarter (three significant bits).
_PADDING = 1.25
# Strips of quantised matrices are multiplied out in float32 and in the compute format.
_STRIP_VALUES = 2**24
_QUERY_TILE = 512
# Values of latents that attention copies at a time, unless one sequence has more.
GATHERED_VALUES = {"cpu": 2**19, "cuda": 2**26}
# How much more than its mean share a rank's experts may get of a step's tokens.
_SKEW = 2


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """What decides the working memory of a rank's step; `device` is "cpu" or "cuda". Tokens,
    sequences and drafts are those of one data-parallel replica. `graph_tokens`: the largest step
    that CUDA graphs are made of."""

    device: str
    spec: Model
    layout: Layout
    compute: Format = BFLOAT16
    dequantize: bool = False
    max_batch_tokens: int = 1024
    max_sequences: int = 64
    max_model_len: int = 4096
    num_drafts: int = 0
    quantization: Quantization | None = None
    ops_backend: str = "reference"
    threads: int = 1
    page_size: int = 64
    graph_tokens: int = 0

    @property
    def holding(self) -> Holding:
        """In which formats parameters are held."""
        return Holding(
            compute=self.compute,
            dequantize=self.dequantize,
            quantization=self.quantization,
            drafts=self.num_drafts > 0,
            packs=self.ops_backend == "cpu",
        )

    def lines(self) -> tuple[MemoryLine, ...]:
        """The ledger's lines of all this."""
        if (kernels := self.kernels()) is not None:
            *arenas, scratch = kernels.buffers()
            own = (
                MemoryLine(
                    "kernel buffers",
                    kernels.buffer_bytes(),
                    f"{' + '.join(map(str, arenas))} + {self.threads} threads x {scratch}, "
                    "in whole pages",
                ),
                MemoryLine(
                    "activations",
                    kernels.tensor_bytes(),
                    f"tensors alive at once in a step of {self.max_batch_tokens} tokens, "
                    f"{self.max_sequences} sequences",
                ),
                MemoryLine(
                    "recorded steps",
                    kernels.recorded_bytes(),
                    "tensors alive at once in a recorded decode step; recordings share them",
                ),
            )
        else:
            own = (
                MemoryLine(
                    "activations (at most)",
                    self.activation_bytes(),
                    f"largest of attention, MLP and logits in a step of {self.max_batch_tokens} "
                    f"tokens, {self.max_sequences} sequences",
                ),
                MemoryLine(
                    "attention gathers (at most)",
                    self.gather_bytes(),
                    f"one layer's cache of {self.max_model_len} tokens, or of a group of sequences",
                ),
                MemoryLine(
                    "CUDA graphs",
                    self._graph_bytes(),
                    f"results between ops of {self.graph_tokens} tokens, one pool for all graphs",
                ),
            )
        shared = MemoryLine("communication buffers", *self._communication())
        return tuple(line for line in (*own, shared) if line.num_bytes)

    def kernels(self) -> KernelStep | None:
        """The same for the CPU kernels; None where they do not run."""
        if self.ops_backend != "cpu" or not isinstance(self.spec, ModelSpec):
            return None
        return KernelStep(
            spec=self.spec,
            layout=self.layout,
            holding=self.holding,
            tokens=self.max_batch_tokens,
            sequences=self.max_sequences,
            max_model_len=self.max_model_len,
            page_size=self.page_size,
            num_drafts=self.num_drafts,
            threads=self.threads,
        )

    def activation_bytes(self) -> int:
        """Largest sum of the tensors alive at one time in a step of the reference backend, KV
        gathers apart: an upper estimate."""
        layer = max(self._attention_bytes(), self._mlp_bytes())
        return max(self._stream_bytes() + layer, self._logit_bytes()) + self._strip_bytes()

    def gather_bytes(self) -> int:
        """What the reference copies at a time for attention: one layer's cache of the longest
        sequence, or of a group of shorter ones."""
        if isinstance(self.spec, ModelSpec):
            values = self.spec.mla.latent_dim
        else:
            gqa = self.spec.gqa
            values = 2 * gqa.head_dim * -(-gqa.num_kv_heads // self.layout.tp)
        longest = ceil(self.max_model_len * _PADDING) * values
        return max(longest, GATHERED_VALUES[self.device]) * self._item_bytes

    @property
    def _item_bytes(self) -> int:
        return self.compute.bits // 8

    @property
    def _sampled(self) -> int:
        return min(self.max_batch_tokens, self.max_sequences * (1 + self.num_drafts))

    def _stream_bytes(self) -> int:
        """The residual stream, what is added to it, its norm, and the norm's two float32 copies."""
        return self.max_batch_tokens * self.spec.hidden_size * (3 * self._item_bytes + 2 * 4)

    def _attention_bytes(self) -> int:
        """Queries of a step's tokens; keys and values of one sequence of full length, expanded
        while its prompt is computed, and of the step's own tokens."""
        item, tokens = self._item_bytes, self.max_batch_tokens
        per_token, per_key = self._query_values(), self._key_values()
        # Long sequences run unpadded, each by itself.
        keys = self.max_model_len + ceil(tokens * _PADDING)
        tile = min(_QUERY_TILE, tokens) * keys * (1 + item)
        return item * (tokens * per_token + keys * per_key) + tile

    def _query_values(self) -> int:
        """Values of a token in attention."""
        if isinstance(self.spec, ModelSpec):
            mla, heads = self.spec.mla, self.spec.mla.num_heads // self.layout.tp
            inputs = (mla.q_lora_rank or 0) + mla.latent_dim
            return inputs + heads * (2 * mla.qk_dim + mla.rope_dim + 2 * mla.v_dim)
        gqa, tp = self.spec.gqa, self.layout.tp
        # Queries before and after rotation, keys and values, what heads found.
        own = 3 * gqa.num_heads // tp + 4 * -(-gqa.num_kv_heads // tp)
        return own * gqa.head_dim

    def _key_values(self) -> int:
        """Values of a key that are made anew in attention: latents expanded; nothing in GQA."""
        if not isinstance(self.spec, ModelSpec):
            return 0
        mla = self.spec.mla
        expanded = mla.nope_dim + mla.v_dim + mla.qk_dim + max(mla.qk_dim, mla.v_dim)
        return mla.num_heads // self.layout.tp * expanded

    def _mlp_bytes(self) -> int:
        """The wider of a dense MLP and the experts: their rows, outputs, and the float32 sum."""
        spec, tokens, layout, item = self.spec, self.max_batch_tokens, self.layout, self._item_bytes
        if not isinstance(spec, ModelSpec):
            return tokens * 3 * spec.intermediate_size // layout.tp * item
        dense = tokens * 3 * spec.dense_intermediate_size // layout.tp * item
        if spec.moe is None:
            return dense
        rows = self._expert_rows() * spec.hidden_size
        width = max(1, spec.moe.num_shared_experts) * spec.moe.intermediate_size
        inner = tokens * layout.dp * 3 * width // layout.expert_cuts * item
        moe = rows * (3 * item + 4) + inner
        return max(moe, dense if spec.dense_layers else 0)

    def _expert_rows(self) -> int:
        """Rows that a rank's experts take of all replicas' tokens."""
        assert isinstance(self.spec, ModelSpec)
        assert self.spec.moe is not None
        every = self.max_batch_tokens * self.layout.dp * self.spec.moe.experts_per_token
        return min(every, _SKEW * every // self.layout.ep)

    def _logit_bytes(self) -> int:
        """Scores of the sampled rows: this rank's, then whole in float32 with what filtering and
        sorting keep beside them (three copies, and int64 places)."""
        hidden = self.max_batch_tokens * self.spec.hidden_size * self._item_bytes
        return hidden + self._sampled * self.spec.vocab_size * (self._item_bytes + 4 * 4 + 8)

    def _strip_bytes(self) -> int:
        is_stored = self.spec.weight_format.block is not None and not self.dequantize
        is_quantised = is_stored or self.quantization is not None
        return _STRIP_VALUES * (4 + self._item_bytes) if is_quantised else 0

    def _graph_bytes(self) -> int:
        """Graphs share a pool, in which the results of the largest one lie."""
        inner = self._query_values() + 4 * self.spec.hidden_size
        return self.graph_tokens * inner * self._item_bytes

    def _communication(self) -> tuple[int, str]:
        """Bytes of what ranks send and receive beside the tensors themselves, and how."""
        layout, hidden = self.layout, self.spec.hidden_size
        row = hidden * self._item_bytes
        size, told = 0, []
        if layout.tp > 1:
            parts = self._sampled * self.spec.vocab_size * 4
            size += parts + parts // layout.tp
            told.append(f"gathered logits {parts} x (1 + 1/{layout.tp})")
        if layout.dp > 1 and layout.ep == 1:
            every = self.max_batch_tokens * layout.dp * row
            size += 2 * every
            told.append(f"tokens of {layout.dp} replicas there and back, 2 x {every}")
        if layout.ep > 1 and isinstance(self.spec, ModelSpec) and self.spec.moe is not None:
            copies = min(layout.ep, self.spec.moe.experts_per_token)
            sent = self.max_batch_tokens * copies * row
            size += (1 + _SKEW) * sent
            told.append(f"dispatch and combine: {sent} sent ({copies} ranks a token), twice taken")
        if layout.pp > 1:
            size += 2 * self.max_batch_tokens * row
            told.append(f"to and from the next stage 2 x {self.max_batch_tokens * row}")
        return size, "; ".join(told)
