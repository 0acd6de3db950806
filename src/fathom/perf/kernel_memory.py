"""What a step on the CPU kernels needs beside weights and KV: the buffers of csrc, the tensors
between ops, and recordings of small decode steps.

Buffers are made at start in the sizes counted here (`library.reserve`), and tests hold that a
largest step asks for exactly these. The tensors follow what `models/layers.py` keeps alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from fathom.perf.held_weights import Holding, is_held, joined_parameters
from fathom.perf.packed import Packed
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout, Shard

_STRIP = 64
# csrc/attend.h: keys of a block and of a split, columns of an item, cap on partial results.
_KEY_BLOCK, _SPLIT_KEYS, _COLUMNS, _MAX_PARTIAL_FLOATS = 128, 512, 64, 2**26
_TILE_BYTES = 2 * 64 * _STRIP * 4 + 2**17  # csrc/ops.h, TileBuffers
_BINS, _MAXIMA_LEVELS, _MAXIMA_GROUP = 1024, 5, 128  # csrc/logits.h
_RECORDED_SEQUENCES = 64  # runtime/replay.py: sequences of a recorded step
_PROMPT_ROWS = 64  # runtime/worker.py: rows of logits while a prompt is scored
_BF16, _FLOAT, _INT = 2, 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStep:
    """The largest step of a rank, and what it is computed with."""

    spec: ModelSpec
    layout: Layout
    holding: Holding
    tokens: int
    sequences: int
    max_model_len: int
    page_size: int
    num_drafts: int
    threads: int

    def buffers(self) -> tuple[int, ...]:
        """Bytes that each of the six arenas of csrc/ops.h is asked for at most, in their order,
        and those of one thread's scratch."""
        mla, heads = self.spec.mla, self._heads
        layers = layer_products(self.spec, self.layout, self.holding)
        columns = self.tokens * heads
        return (
            max(self._acts(layer) for layer in layers),
            max(self._inner(layer) for layer in layers),
            max(self._inner_acts(layer) for layer in layers),
            max([self._partial(), *(self._sums(layer) for layer in layers)]),
            columns * mla.latent_dim * _BF16,
            columns * mla.kv_lora_rank * _BF16,
            self._scratch(),
        )

    def buffer_bytes(self) -> int:
        """Bytes of the buffers as they are made, of all threads: in whole pages."""
        *arenas, scratch = self.buffers()
        whole = sum(max(4096, -(-size // 4096) * 4096) for size in arenas)
        return whole + self.threads * (-(-scratch // 64) * 64)

    def tensor_bytes(self) -> int:
        """Largest sum of the tensors alive at one time in a step."""
        tokens, hidden = self.tokens, self.spec.hidden_size
        table = ceil(self.max_model_len / self.page_size)
        batch = _INT * (3 * tokens + (table + 2) * self.sequences + 1)
        angles = tokens * self.spec.mla.rope_dim * _FLOAT
        stream = 2 if self.spec.num_layers > 1 else 1  # residual, and what is to be added
        forward = max(self._attention(stream), self._mlp(stream + 2), 3 * tokens * hidden * _BF16)
        peak = max(angles + forward, self._logits())
        if self.num_drafts:
            # Main states and their rows, embeddings, both norms; then the layer without an update.
            kept = 5
            # The projection's input is there while the residual stream is made.
            project = (kept + 3) * tokens * hidden * _BF16
            again = batch + angles + max(self._attention(kept + 1), self._mlp(kept + 3))
            peak = max(peak, again, project)
        # Where nothing waits for drafts, the batch of the next step is made while this one runs.
        return batch + peak + (0 if self.num_drafts else batch)

    def recorded_bytes(self) -> int:
        """What recordings of small decode steps share: blocks of as many rows as one may have, of
        each size as many as any recording needs at once."""
        if self.layout.tp > 1:
            return 0
        pages = ceil(self.max_model_len / self.page_size)
        blocks: Counter[int] = Counter()
        for bits in range((pages - 1).bit_length() + 1):
            inputs = [_INT] * 4 + [_INT << bits] + [self.spec.mla.rope_dim // 2 * _FLOAT] * 2
            for results in self._recorded_results():
                blocks |= Counter(inputs + results)
        rows = min(_RECORDED_SEQUENCES, self.sequences)
        return rows * sum(size * count for size, count in blocks.items()) + (rows + 1) * _INT

    @property
    def _heads(self) -> int:
        return self.spec.mla.num_heads // self.layout.tp

    @property
    def _rows(self) -> int:
        """Rows of logits."""
        sampled = self.sequences * (1 + self.num_drafts)
        return min(self.tokens, max(sampled, _PROMPT_ROWS))

    def _acts(self, layer: dict[str, Packed]) -> int:
        sizes = [0]
        for role, one in layer.items():
            if role in ("absorb", "expand"):
                is_direct = one.is_plain and one.columns == one.padded
                sizes.append(0 if is_direct else one.count * self.tokens * one.row_bytes)
            elif role in ("head", "tied_head"):
                sizes.append(self._rows * one.row_bytes)
            elif not role.endswith("_down"):
                sizes.append(self.tokens * one.row_bytes)
        if "expert_gate" in layer and "shared_gate" in layer:
            routed, shared = layer["expert_gate"], layer["shared_gate"]
            is_same = routed.is_plain and shared.is_plain
            is_same |= (routed.format.name, routed.group) == (shared.format.name, shared.group)
            both = 0 if is_same else shared.row_bytes
            sizes.append(self.tokens * (routed.row_bytes + both))
        return max(sizes)

    def _places(self, layer: dict[str, Packed]) -> int:
        """Rows of inner values: one for each expert of a token."""
        moe = self.spec.moe
        routed = moe.experts_per_token if moe is not None and "expert_down" in layer else 0
        return self.tokens * (routed + ("shared_down" in layer or "dense_down" in layer))

    def _inner(self, layer: dict[str, Packed]) -> int:
        return self._places(layer) * max((one.padded for one in _downs(layer)), default=0) * _BF16

    def _inner_acts(self, layer: dict[str, Packed]) -> int:
        return self._places(layer) * max((one.row_bytes for one in _downs(layer)), default=0)

    def _sums(self, layer: dict[str, Packed]) -> int:
        """Outputs of the experts, or the router's scores."""
        strips = max((one.strips for one in _downs(layer)), default=0)
        experts = self.spec.moe.num_experts if self.spec.moe and "expert_down" in layer else 0
        return self.tokens * _FLOAT * max(strips * _STRIP, -(-experts // 16) * 16)

    def _partial(self) -> int:
        """What splits of long contexts found, for the sequences whose splits run side by side."""
        most = 4 * _COLUMNS // self._heads  # queries of a sequence that are few enough
        splits = ceil(self.max_model_len / _SPLIT_KEYS)
        if most == 0 or splits < 2:
            return 0
        queries = min(most, max(1, self.tokens // self.sequences))
        columns = queries * self._heads
        padded = -(-self.spec.mla.kv_lora_rank // _STRIP) * _STRIP
        each = splits * (-(-columns // _COLUMNS) * 2 * _COLUMNS + columns * padded)
        return _FLOAT * min(self.sequences, _MAX_PARTIAL_FLOATS // each) * each

    def _scratch(self) -> int:
        """A thread's: a tile and an item of attention, or a row of logits that is sorted."""
        mla, vocab = self.spec.mla, self.spec.vocab_size
        padded = -(-mla.kv_lora_rank // _STRIP) * _STRIP
        item = _BF16 * (mla.latent_dim + 1) * _COLUMNS + 6 * _KEY_BLOCK * _COLUMNS
        item += _BF16 * _KEY_BLOCK * (padded + mla.latent_dim) + 6 * 4 * _COLUMNS
        item += 2 * _FLOAT * _COLUMNS * padded + 16 * 64
        maxima, size = 0, vocab
        for _ in range(_MAXIMA_LEVELS):
            size = -(-size // _MAXIMA_GROUP) * 16
            maxima += size
        row = 8 * (3 * vocab + 16) + 16 * _BINS + 8 * maxima
        return max(_TILE_BYTES + item, row)

    def _widths(self) -> tuple[int, int]:
        """Values of a token that attention makes: its inputs; queries and what heads found."""
        mla, heads = self.spec.mla, self._heads
        own = heads * mla.v_dim
        if mla.q_lora_rank is None:
            return heads * mla.qk_dim + mla.latent_dim, own
        return mla.q_lora_rank + mla.latent_dim, own + heads * mla.qk_dim

    def _attention(self, num_streams: int) -> int:
        inputs, own = self._widths()
        return self.tokens * _BF16 * ((num_streams + 1) * self.spec.hidden_size + inputs + own)

    def _mlp(self, num_streams: int) -> int:
        return self.tokens * ((num_streams + 1) * self.spec.hidden_size * _BF16 + self._routes())

    def _routes(self) -> int:
        return 0 if self.spec.moe is None else self.spec.moe.experts_per_token * (_INT + _FLOAT)

    def _logits(self) -> int:
        """Hidden states, the rows that are sampled, their scores and a copy of them for
        log-probabilities; or the scores of a part of a prompt."""
        hidden, scores = self.spec.hidden_size * _BF16, self.spec.vocab_size * _FLOAT
        found = 2 * _INT + _FLOAT  # token, log-probability and rank
        sampled = min(self.tokens, self.sequences * (1 + self.num_drafts))
        prompt = min(self.tokens, _PROMPT_ROWS) * (scores + found)
        return self.tokens * hidden + max(prompt, sampled * (hidden + 2 * scores + found))

    def _recorded_results(self) -> tuple[list[int], list[int]]:
        """Bytes a row of the results that are alive at the ends of attention and of the MLP."""
        spec, mla, moe = self.spec, self.spec.mla, self.spec.moe
        hidden = spec.hidden_size * _BF16
        queries = mla.num_heads * mla.qk_dim
        widths = [(mla.q_lora_rank or queries) + mla.latent_dim, mla.num_heads * mla.v_dim]
        if mla.q_lora_rank is not None:
            widths.append(queries)
        stream = [hidden] * (2 if spec.num_layers > 1 else 1)
        routes: list[int] = []
        if moe is not None and any(map(spec.is_moe_layer, range(spec.num_layers))):
            routes = [moe.experts_per_token * _INT, moe.experts_per_token * _FLOAT]
        attention = [*stream, *(width * _BF16 for width in widths), hidden]
        return attention, [*stream, *[hidden] * 3, *routes]


@lru_cache(maxsize=64)
def layer_products(
    spec: ModelSpec, layout: Layout, holding: Holding
) -> tuple[dict[str, Packed], ...]:
    """The packed matrices of every different layer, and of what is outside, by role."""
    shard = Shard(layout)
    layers: dict[int, dict[str, Packed]] = {}
    for one in joined_parameters(spec):
        if is_held(one, layout, holding.drafts):
            for matrix in one.packed(spec, shard, holding):
                for layer in one.layers:
                    layers.setdefault(layer, {})[matrix.role] = matrix
    distinct = {tuple(sorted(layer.items(), key=_role)): layer for layer in layers.values()}
    return tuple(distinct.values())


def _role(item: tuple[str, Packed]) -> str:
    return item[0]


def _downs(layer: dict[str, Packed]) -> Iterator[Packed]:
    return (one for role, one in layer.items() if role.endswith("_down"))
