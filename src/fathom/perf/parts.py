"""The kernels of a step of one rank: how often each runs, and what it moves and computes, as linear
functions of counts of the step. Sizes only: nothing here knows a rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fathom.spec.dense import DenseSpec, Gqa
from fathom.spec.families import Model
from fathom.spec.formats import BFLOAT16, Format, kv_cell_bytes
from fathom.spec.model import Mla, ModelSpec, Moe
from fathom.spec.parallel import Layout
from fathom.spec.work import expanded_operations, expert_chances, gated_bytes, gated_operations

# Counts of a step that a kernel may grow with; `perf.cost` makes them of a shape.
TOKENS, ALL_TOKENS, SAMPLED, DECODE_TOKENS, DECODE_KV, DECODE_PAIRS = range(6)
PREFILL_TOKENS, PREFILL_KV, PREFILL_PAIRS = range(6, 9)
# Activations that cross a link as FP8 have a float32 scale for each 128.
_FP8_ROW = 1 + 4 / 128
_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """How weights, the cache and everything else are held. Embedding, head, router and the latents'
    up-projections are in `compute` whatever the weights are."""

    weights: Format
    kv: Format = BFLOAT16
    compute: Format = BFLOAT16


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A kernel that runs `count` times in a step, if its `grows` is not 0.

    It moves `fixed_bytes` and `bytes_each` for each of `grows`, computes `operations_each` for each
    of `computes` (0: as `grows`) on weights in `form`. `units` as in `calibration.Law`. `ranks` not
    0: a collective of that many, whose bytes cross a link. `chances` not empty: experts; those
    bytes are of one expert, `units` counts the distinct ones.
    """

    name: str
    law: str
    count: int
    grows: int
    fixed_bytes: float = 0.0
    bytes_each: float = 0.0
    operations_each: float = 0.0
    computes: int = -1
    form: Format = BFLOAT16
    units: float = 0.0
    ranks: int = 0
    chances: tuple[float, ...] = ()
    groups: int = 1


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank's part of a model."""

    spec: Model
    layout: Layout
    formats: Formats
    skew: float
    node: int

    @property
    def item(self) -> float:
        """Bytes of an activation."""
        return self.formats.compute.bits / 8

    @property
    def stage(self) -> int:
        """Ranks of a pipeline stage."""
        return self.layout.tp * self.layout.dp

    def product(
        self,
        name: str,
        count: int,
        width: float,
        inputs: float,
        *,
        grows: int = TOKENS,
        form: Format | None = None,
    ) -> Part:
        """A product with a matrix of `width` outputs, read once."""
        form = self.formats.weights if form is None else form
        return Part(
            name=name,
            law="gemm",
            count=count,
            grows=grows,
            fixed_bytes=form.num_bytes((max(1, round(width)), max(1, round(inputs)))),
            bytes_each=(width + inputs) * self.item,
            operations_each=2 * width * inputs,
            form=form,
            units=inputs,
        )

    def attend(
        self, law: str, num_bytes: float, operations: float, grows: int, computes: int
    ) -> Part:
        """Attention of all layers: bytes for each token of the context, operations for each pair of
        a query and a key."""
        return Part(
            name=f"attend, {'prompt' if law == 'prefill' else law}",
            law=law,
            count=self.spec.num_layers,
            grows=grows,
            bytes_each=num_bytes,
            operations_each=operations,
            computes=computes,
        )

    def rows(self, name: str, count: int, values: float, *, grows: int = TOKENS) -> Part:
        """A pass over rows, of `values` read and written each."""
        return Part(name=name, law="rows", count=count, grows=grows, bytes_each=values * self.item)

    def reduced(self, count: int) -> Iterator[Part]:
        """A sum over a tensor-parallel group: scattered, then gathered. Across nodes, each rank
        does so for its share of what its node summed."""
        tp, node = self.layout.tp, min(self.layout.tp, self.node)
        row_bytes = 2 * self.spec.hidden_size * self.item
        yield self.collective("all-reduce", count, node, (node - 1) / node * row_bytes)
        nodes = tp / node
        if nodes > 1:
            yield self.collective("all-reduce", count, tp, (nodes - 1) / nodes * row_bytes / node)

    def collective(self, name: str, count: int, ranks: int, row_bytes: float) -> Part:
        """An exchange; `row_bytes` leave each rank, and reach it, for each of its tokens."""
        return Part(
            name=name, law=name, count=count, grows=TOKENS, bytes_each=row_bytes, ranks=ranks
        )


@lru_cache(maxsize=512)
def parts(
    spec: Model, layout: Layout, formats: Formats, *, skew: float = 0.0, node: int = 2**20
) -> tuple[Part, ...]:
    """Every kernel of a step of the rank that has most to do, with all layers of the pipeline;
    `node` ranks share a host."""
    rank = _Rank(spec, layout, formats, skew, node)
    if isinstance(spec, DenseSpec):
        layers = (*_gqa_attention(rank, spec.gqa), *_dense(rank, spec.num_layers))
    else:
        layers = (*_mla_attention(rank, spec.mla), *_mlps(rank, spec))
    made = (*layers, *_ends(rank))
    return tuple(part for part in made if part.count and part.ranks != 1)


def _gqa_attention(rank: _Rank, gqa: Gqa) -> Iterator[Part]:
    """Keys and values by their heads, which ranks beyond their number hold again."""
    layers, tp = rank.spec.num_layers, rank.layout.tp
    queries, keys = gqa.num_heads / tp * gqa.head_dim, max(1, gqa.num_kv_heads / tp) * gqa.head_dim
    yield rank.product("queries, keys, values", layers, queries + 2 * keys, rank.spec.hidden_size)
    cell = 2 * keys * rank.formats.kv.bits / 8
    yield rank.attend("decode", cell, 4 * queries, DECODE_KV, DECODE_PAIRS)
    yield rank.attend("prefill", cell, 4 * queries, PREFILL_KV, PREFILL_PAIRS)
    yield from _after_attention(rank, queries)


def _mla_attention(rank: _Rank, mla: Mla) -> Iterator[Part]:
    """Decode stays in the latents' space; prompts multiply keys and values out of the latents."""
    layers, hidden, heads = (
        rank.spec.num_layers,
        rank.spec.hidden_size,
        mla.num_heads / rank.layout.tp,
    )
    if mla.q_lora_rank is None:
        yield rank.product("queries", layers, heads * mla.qk_dim, hidden)
        yield rank.product("latents", layers, mla.latent_dim, hidden)
    else:
        yield rank.product("latents", layers, mla.q_lora_rank + mla.latent_dim, hidden)
        yield rank.product("queries", layers, heads * mla.qk_dim, mla.q_lora_rank)
    form, latent = rank.formats.compute, mla.kv_lora_rank
    for name, width in (("absorb queries", mla.nope_dim), ("absorb values", mla.v_dim)):
        yield rank.product(name, layers, heads * width, latent, grows=DECODE_TOKENS, form=form)
    cell = float(kv_cell_bytes(rank.formats.kv, latent, mla.rope_dim))
    absorbed = 2 * heads * (mla.latent_dim + latent)
    yield rank.attend("decode", cell, absorbed, DECODE_KV, DECODE_PAIRS)
    expanded = heads * (mla.nope_dim + mla.v_dim)
    yield rank.product("keys and values", layers, expanded, latent, grows=PREFILL_KV)
    cell += heads * (mla.qk_dim + mla.v_dim) * rank.item
    operations = expanded_operations(mla, heads, 1)
    yield rank.attend("prefill", cell, operations, PREFILL_KV, PREFILL_PAIRS)
    yield from _after_attention(rank, heads * mla.v_dim)


def _after_attention(rank: _Rank, inputs: float) -> Iterator[Part]:
    layers, hidden = rank.spec.num_layers, rank.spec.hidden_size
    yield rank.product("output", layers, hidden, inputs)
    yield from rank.reduced(layers)
    yield rank.rows("norms", 2 * layers, 4 * hidden)


def _dense(rank: _Rank, count: int) -> Iterator[Part]:
    if isinstance(rank.spec, DenseSpec):
        inner = rank.spec.intermediate_size
    else:
        inner = rank.spec.dense_intermediate_size
    yield from _gated(rank, "dense MLP", count, inner / rank.layout.tp)
    yield from rank.reduced(count)


def _mlps(rank: _Rank, spec: ModelSpec) -> Iterator[Part]:
    num_moe = sum(map(spec.is_moe_layer, range(spec.num_layers)))
    yield from _dense(rank, spec.num_layers - num_moe)
    if spec.moe is None:
        return
    form = rank.formats.compute
    yield rank.product("router", num_moe, spec.moe.num_experts, spec.hidden_size, form=form)
    shared = spec.moe.num_shared_experts * spec.moe.intermediate_size / rank.layout.tp
    if shared:
        yield from _gated(rank, "shared experts", num_moe, shared)
    yield _experts(rank, spec.moe, num_moe)
    if rank.layout.dp == 1:
        yield from rank.reduced(num_moe)
    else:
        yield from _exchanges(rank, spec.moe, num_moe)


def _gated(rank: _Rank, name: str, count: int, inner: float) -> Iterator[Part]:
    hidden = rank.spec.hidden_size
    yield rank.product(f"{name}: gate and up", count, 2 * inner, hidden)
    yield rank.product(f"{name}: down", count, hidden, inner)
    yield rank.rows(f"{name}: activation", count, 3 * inner)


def _experts(rank: _Rank, moe: Moe, count: int) -> Part:
    """Dealt out, and copied where they are popular, so that groups have alike to do: as a balancer
    would. Each is cut so that all ranks of the stage have a part."""
    hidden, groups = rank.spec.hidden_size, rank.layout.ep
    inner = moe.intermediate_size * groups / rank.stage
    form, chosen = rank.formats.weights, moe.experts_per_token / groups
    return Part(
        name="experts",
        law="experts",
        count=count,
        grows=ALL_TOKENS,
        fixed_bytes=gated_bytes(form, hidden, max(1, round(inner))),
        bytes_each=chosen * (2 * hidden + 3 * inner) * rank.item,
        operations_each=chosen * gated_operations(hidden, inner),
        form=form,
        chances=expert_chances(moe.num_experts, moe.experts_per_token, rank.skew),
        groups=groups,
    )


def _exchanges(rank: _Rank, moe: Moe, count: int) -> Iterator[Part]:
    """Tokens go to the experts' ranks, and sums come back: to those chosen where experts are whole,
    to all of the stage where they are cut. A token crosses the network once for each node that it
    goes to, and is handed on within it.

    Source: DeepSeek-V3 report (arXiv 2412.19437), section 3.2.2.
    """
    stage, node = rank.stage, min(rank.stage, rank.node)
    nodes = stage // node
    if rank.layout.ep == stage:
        chosen = _reached(stage, moe.experts_per_token)
        # Experts' groups are dealt out to nodes, and a token chooses among few groups.
        most = moe.groups_per_token if moe.num_groups % nodes == 0 else nodes
        chosen_nodes = min(most, _reached(nodes, moe.experts_per_token))
    else:
        chosen, chosen_nodes = float(stage), float(nodes)
    # Ranks of a tensor-parallel group have the same tokens, and each sends a part.
    values = rank.spec.hidden_size / rank.layout.tp
    there = _FP8_ROW if rank.formats.weights.bits <= 8 else rank.item
    for item in (there, rank.item):
        inside = chosen * (node - 1) / node
        yield rank.collective("exchange", count, node, inside * values * item)
        if nodes > 1:
            outside = chosen_nodes * (nodes - 1) / nodes
            yield rank.collective("exchange", count, stage, outside * values * item)


def _reached(groups: int, choices: int) -> float:
    """Expected distinct ones of `groups` that `choices` fall into."""
    return float(groups * (1 - (1 - 1 / groups) ** choices))


def _ends(rank: _Rank) -> Iterator[Part]:
    spec, layout = rank.spec, rank.layout
    yield rank.rows("embedding", 1, 2 * spec.hidden_size)
    vocab, form = spec.vocab_size / layout.tp, rank.formats.compute
    yield rank.product("head", 1, vocab, spec.hidden_size, grows=SAMPLED, form=form)
    logits = 4 * spec.vocab_size * _FLOAT32 / rank.item
    yield rank.rows("sampling", 1, logits, grows=SAMPLED)
    # The hidden state and the residual go on to the next stage, on this host or the next.
    hops = layout.pp - 1
    ranks = 2 if 2 * rank.stage <= rank.node else 2 * rank.stage
    yield rank.collective("send", hops, ranks, 2 * spec.hidden_size * rank.item)
