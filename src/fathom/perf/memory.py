"""The byte ledger of a rank: weights, KV and the CPU kernels' working memory exactly, the
reference backend's working memory by an upper estimate.

The same numbers size the page pool, are printed by a plan, and answer what fits a machine that is
not there. Weights are in `perf/held_weights.py`, what a step needs in `perf/working.py`.
"""

from __future__ import annotations

from fathom.errors import ConfigError
from fathom.perf.held_weights import weight_lines
from fathom.perf.working import WorkingSet
from fathom.spec.dense import DenseSpec
from fathom.spec.families import Model, check_layout
from fathom.spec.formats import FP8_LATENT, Format, kv_cell_bytes
from fathom.spec.parallel import Layout
from fathom.spec.plan import MemoryLine
from fathom.units import format_count

# A CUDA context with its libraries and their communication; an interpreter with torch.
RESERVE_BYTES = {"cuda": 768 * 2**20, "cpu": 256 * 2**20}


def kv_layers(model: Model, layout: Layout, num_drafts: int = 0) -> int:
    """Layers whose cache a rank of the fullest stage holds, those that draft too."""
    num_mtp = 0 if isinstance(model, DenseSpec) or not num_drafts else model.num_mtp_layers
    # Layers of the last stage that draft count to it; else the first stage has the most.
    first, last = -(-model.num_layers // layout.pp), model.num_layers // layout.pp + num_mtp
    return max(first, last)


def kv_bytes_per_token(model: Model, kv_format: Format, layout: Layout, num_drafts: int = 0) -> int:
    """Bytes of a cached token on one rank: latents whole on each rank of a replica, keys and
    values of GQA cut by their heads. With `dp` replicas a token lies in one of them.

    Source: DeepSeek-V2 paper (arXiv 2405.04434), section 2.1; GQA, arXiv 2305.13245. Raises:
    ConfigError for a format that the model's cache does not have.
    """
    return kv_layers(model, layout, num_drafts) * _cell_bytes(model, kv_format, layout)


def _cell_bytes(model: Model, kv_format: Format, layout: Layout) -> int:
    """Bytes of a token in one layer."""
    if not isinstance(model, DenseSpec):
        return kv_cell_bytes(kv_format, model.mla.kv_lora_rank, model.mla.rope_dim)
    if kv_format == FP8_LATENT:
        raise ConfigError(
            "the format of the cache", found=kv_format.name, wanted="bfloat16 or fp8 for GQA"
        )
    heads = -(-model.gqa.num_kv_heads // layout.tp)
    return 2 * heads * model.gqa.head_dim * kv_format.bits // 8


def page_bytes(working: WorkingSet, kv_format: Format) -> int:
    """Bytes of a page on one rank, all its layers, MTP layers too where they draft."""
    token = kv_bytes_per_token(working.spec, kv_format, working.layout, working.num_drafts)
    return working.page_size * token


def ledger(
    working: WorkingSet, *, kv_dtype: Format, num_pages: int, reserve_bytes: int
) -> tuple[MemoryLine, ...]:
    """Every line of a rank's memory; the sum is what the plan may use."""
    model, layout, size = working.spec, working.layout, working.page_size
    token = kv_bytes_per_token(model, kv_dtype, layout, working.num_drafts)
    layers = kv_layers(model, layout, working.num_drafts)
    told = (
        f"{format_count(num_pages * size)} tokens x {layers} layers x {token // layers} bytes "
        f"({kv_dtype.name})"
    )
    return (
        *weight_lines(model, layout, working.holding),
        MemoryLine("KV pages", num_pages * size * token, told),
        *working.lines(),
        MemoryLine("runtime reserve", reserve_bytes, "interpreter, libraries and their contexts"),
    )


def rank_ledger(
    working: WorkingSet, *, kv_format: Format, kv_tokens: int, reserve_bytes: int | None = None
) -> tuple[MemoryLine, ...]:
    """The bytes of the fullest rank of any layout, `kv_tokens` cached by each replica.

    Weights: the largest stage's. KV: tokens x layers of a stage x bytes of a cell. Working memory:
    as `WorkingSet.lines`. `reserve_bytes`: None for what is usual on the device. Raises:
    ConfigError where the layout does not divide the model.
    """
    check_layout(working.spec, working.layout)
    reserve = RESERVE_BYTES[working.device] if reserve_bytes is None else reserve_bytes
    num_pages = -(-kv_tokens // working.page_size)
    return ledger(working, kv_dtype=kv_format, num_pages=num_pages, reserve_bytes=reserve)


def kv_capacity(
    working: WorkingSet, *, kv_format: Format, limit_bytes: int, reserve_bytes: int | None = None
) -> int:
    """Tokens of KV that each replica has room for in `limit_bytes` of each rank; below 0 by as many
    as are missing where not even the rest fits."""
    used = rank_ledger(working, kv_format=kv_format, kv_tokens=0, reserve_bytes=reserve_bytes)
    page = page_bytes(working, kv_format)
    return (limit_bytes - total_bytes(used)) // page * working.page_size


def total_bytes(lines: tuple[MemoryLine, ...]) -> int:
    """The sum of a ledger's lines."""
    return sum(line.num_bytes for line in lines)
