"""The byte ledger of a rank: weights and KV exactly, working memory by an upper estimate.

The same numbers size the page pool and are printed. Weights follow `ParamSpec.local_bytes`, which
is also how they are loaded; activations follow what the reference backend keeps alive at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import Format, kv_cell_bytes
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout, Shard
from fathom.spec.params import ParamSpec
from fathom.spec.plan import MemoryLine

# The reference backend pads lengths by up to a quarter (three significant bits).
_PADDING = 1.25
# Strips of quantised matrices are multiplied out in float32 and in the compute format.
_STRIP_VALUES = 2**24
_QUERY_TILE = 512
# Values of latents that attention copies at a time, unless one sequence has more.
GATHERED_VALUES = {"cpu": 2**19, "cuda": 2**26}
# csrc/attend.h: keys of a split and of a block; csrc/ops.h: what a thread keeps for its tiles.
_SPLIT_KEYS = 512
_KEY_BLOCK = 128
_TILE_BYTES = 2**18
_PARTS = {
    "embed": "weights: embedding and head",
    "head": "weights: embedding and head",
    "dense": "weights: dense MLP",
    "expert": "weights: experts",
    "shared": "weights: shared experts",
    "router": "weights: norms and routers",
    "correction": "weights: norms and routers",
}


@dataclass(frozen=True, slots=True)
class ParamKind:
    """Parameters that differ in name only: experts make tens of thousands of rows a few kinds."""

    param: ParamSpec
    is_mtp: bool
    count: int


def parameter_kinds(spec: ModelSpec) -> tuple[ParamKind, ...]:
    """The parameter table, counted by kind."""
    counts: dict[tuple[object, ...], int] = {}
    first: dict[tuple[object, ...], ParamSpec] = {}
    for param in parameter_table(spec):
        is_mtp = param.layer is not None and param.layer >= spec.num_layers
        key = (is_mtp, param.role, param.shape, param.format)
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, param)
    return tuple(ParamKind(param, bool(key[0]), counts[key]) for key, param in first.items())


def weight_lines(
    kinds: tuple[ParamKind, ...],
    layout: Layout,
    compute: Format,
    *,
    dequantize: bool,
    drafts: bool,
    quantization: Quantization | None = None,
) -> tuple[MemoryLine, ...]:
    """Bytes of the parameters that a rank holds, by part; every rank's are equal.

    `drafts` says whether the MTP layers are loaded; `quantization` as in `load_parameters`.
    """
    sums: dict[str, int] = {}
    for kind in kinds:
        if kind.is_mtp and not drafts:
            continue
        size = kind.param.local_bytes(
            Shard(layout), compute, dequantize=dequantize, quantization=quantization
        )
        part = "weights: MTP layers" if kind.is_mtp else _part(kind.param)
        sums[part] = sums.get(part, 0) + kind.count * size
    return tuple(MemoryLine(part, num_bytes) for part, num_bytes in sums.items())


def page_bytes(spec: ModelSpec, kv_dtype: Format, page_size: int, num_drafts: int) -> int:
    """Bytes of a page of latents in all layers, MTP layers too where they draft."""
    layers = spec.num_layers + (spec.num_mtp_layers if num_drafts else 0)
    cell = kv_cell_bytes(kv_dtype, spec.mla.kv_lora_rank, spec.mla.rope_dim)
    return layers * page_size * cell


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """What decides the working memory of a rank's step; `device` is "cpu" or "cuda"."""

    device: str
    spec: ModelSpec
    layout: Layout
    compute: Format
    dequantize: bool
    max_batch_tokens: int
    max_sequences: int
    max_model_len: int
    num_drafts: int
    quantization: Quantization | None = None
    ops_backend: str = "reference"
    threads: int = 1

    def activation_bytes(self) -> int:
        """Largest sum of the tensors alive at one time in a step, KV gathers apart."""
        if self.ops_backend == "cpu":
            return self._kernel_bytes()
        layer = max(self._attention_bytes(), self._mlp_bytes())
        return max(self._stream_bytes() + layer, self._logit_bytes()) + self._strip_bytes()

    def gather_bytes(self) -> int:
        """What attention copies at a time: one layer's latents of the longest sequence, or of a
        group of shorter ones."""
        if self.ops_backend == "cpu":
            return 0
        longest = ceil(self.max_model_len * _PADDING) * self.spec.mla.latent_dim
        return max(longest, GATHERED_VALUES[self.device]) * self._item_bytes

    @property
    def _item_bytes(self) -> int:
        return self.compute.bits // 8

    def _kernel_bytes(self) -> int:
        """What the CPU kernels keep: buffers that grow to the largest step and stay, and the
        tensors between the ops. Source: the arenas of csrc/ops.h, each a quarter larger than was
        asked of it at once.
        """
        spec, tokens, tp = self.spec, self.max_batch_tokens, self.layout.tp
        mla, heads = spec.mla, spec.mla.num_heads // tp
        rank = mla.kv_lora_rank
        queries = tokens * heads * 2 * (mla.latent_dim + rank)
        widest = max(spec.hidden_size, heads * mla.v_dim, spec.dense_intermediate_size // tp)
        acts = tokens * max(3 * widest, heads * 3 * max(rank, mla.nope_dim))
        inner = tokens * 2 * spec.dense_intermediate_size // tp
        if spec.moe is not None:
            slots = spec.moe.experts_per_token + spec.moe.num_shared_experts
            inner = max(inner, tokens * slots * 2 * spec.moe.intermediate_size // tp)
        # Sums of one op, or what splits of long contexts found, for each sequence and head.
        splits = ceil(self.max_model_len / _SPLIT_KEYS)
        found = self.max_sequences * splits * heads * 4 * (rank + 2)
        arenas = queries + acts + 2 * inner + max(4 * tokens * spec.hidden_size, found)
        own = _TILE_BYTES + _KEY_BLOCK * 2 * (2 * mla.latent_dim + 64 * 3) + 2 * 64 * 4 * rank
        between = tokens * 2 * (4 * spec.hidden_size + (mla.q_lora_rank or 0) + mla.latent_dim)
        between += tokens * heads * 2 * (mla.qk_dim + mla.v_dim)
        rows = min(tokens, self.max_sequences * (1 + self.num_drafts))
        logits = rows * spec.vocab_size * 2 * 4
        return arenas * 5 // 4 + self.threads * own + between + logits

    def _stream_bytes(self) -> int:
        """The residual stream, what is added to it, its norm, and the norm's two float32 copies."""
        return self.max_batch_tokens * self.spec.hidden_size * (3 * self._item_bytes + 2 * 4)

    def _attention_bytes(self) -> int:
        """Queries of a step's tokens; keys and values of one sequence of full length, expanded
        while its prompt is computed, and of the step's own tokens."""
        mla, item = self.spec.mla, self._item_bytes
        heads = mla.num_heads // self.layout.tp
        per_token = (mla.q_lora_rank or 0) + mla.latent_dim
        per_token += heads * (2 * mla.qk_dim + mla.rope_dim + 2 * mla.v_dim)
        expanded = mla.nope_dim + mla.v_dim + mla.qk_dim + max(mla.qk_dim, mla.v_dim)
        # Long sequences run unpadded, each by itself.
        keys = self.max_model_len + ceil(self.max_batch_tokens * _PADDING)
        tile = min(_QUERY_TILE, self.max_batch_tokens) * keys * (1 + item)
        return item * (self.max_batch_tokens * per_token + keys * heads * expanded) + tile

    def _mlp_bytes(self) -> int:
        """The wider of a dense MLP and the experts: their rows, outputs, and the float32 sum."""
        spec, tokens, tp = self.spec, self.max_batch_tokens, self.layout.tp
        dense = tokens * 3 * spec.dense_intermediate_size // tp * self._item_bytes
        if spec.moe is None:
            return dense
        rows = tokens * spec.moe.experts_per_token * spec.hidden_size
        width = max(1, spec.moe.num_shared_experts) * spec.moe.intermediate_size
        inner = tokens * 3 * width // tp * self._item_bytes
        moe = rows * (3 * self._item_bytes + 4) + inner
        return max(moe, dense if spec.dense_layers else 0)

    def _logit_bytes(self) -> int:
        """Scores of the sampled rows: this rank's, then whole in float32 with what filtering and
        sorting keep beside them (three copies, and int64 places)."""
        rows = min(self.max_batch_tokens, self.max_sequences * (1 + self.num_drafts))
        hidden = self.max_batch_tokens * self.spec.hidden_size * self._item_bytes
        return hidden + rows * self.spec.vocab_size * (self._item_bytes + 4 * 4 + 8)

    def _strip_bytes(self) -> int:
        is_stored = self.spec.weight_format.block is not None and not self.dequantize
        is_quantised = is_stored or self.quantization is not None
        return _STRIP_VALUES * (4 + self._item_bytes) if is_quantised else 0


def ledger(
    weights: tuple[MemoryLine, ...],
    working: WorkingSet,
    *,
    kv_dtype: Format,
    page_size: int,
    num_pages: int,
    reserve_bytes: int,
) -> tuple[MemoryLine, ...]:
    """Every line of a rank's memory; the sum is what the plan may use."""
    page = page_bytes(working.spec, kv_dtype, page_size, working.num_drafts)
    return (
        *weights,
        MemoryLine("KV pages", num_pages * page),
        MemoryLine("activations (at most)", working.activation_bytes()),
        MemoryLine("attention gathers (at most)", working.gather_bytes()),
        MemoryLine("runtime reserve", reserve_bytes),
    )


def total_bytes(lines: tuple[MemoryLine, ...]) -> int:
    """The sum of a ledger's lines."""
    return sum(line.num_bytes for line in lines)


def _part(param: ParamSpec) -> str:
    if param.layer is not None and len(param.shape) == 2:
        return _PARTS.get(param.role.partition("_")[0], "weights: attention")
    return _PARTS.get(param.role, "weights: norms and routers")
