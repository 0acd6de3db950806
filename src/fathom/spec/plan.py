"""What will run: every setting resolved, each with its reason. Nothing here is None for "auto"."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.spec.formats import Format
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout


@dataclass(frozen=True, slots=True)
class Decision:
    """One resolved setting: `source` is `asked`, `model`, `machine` or `default`."""

    field: str
    value: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """One row of the byte ledger of a rank; `formula`: how it came about, with its numbers."""

    part: str
    num_bytes: int
    formula: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """Everything that the engine, the simulator and the renderers need, resolved and frozen."""

    model_path: str
    served_names: tuple[str, ...]
    model: ModelSpec
    layout: Layout
    device: str
    compute_dtype: Format
    kv_dtype: Format
    page_size: int
    num_pages: int
    max_model_len: int
    max_batch_tokens: int
    max_sequences: int
    max_queued: int
    num_drafts: int
    run_ahead: int
    prefix_cache: bool
    threads: int
    seed: int
    step_timeout_s: float
    ledger: tuple[MemoryLine, ...]
    decisions: tuple[Decision, ...]
    # Whether quantised matrices are multiplied out when they are loaded (`load_parameters`), as the
    # ledger counts them.
    dequantize: bool = False
    # Format in which matrices are held whatever is stored; None: as they are stored.
    quantization: Quantization | None = None
    ops_backend: str = "reference"
    # What ends an answer that loops: tokens of one stretch over and over, and how often.
    loop_guard_tokens: int = 1024
    loop_guard_repeats: int = 8
    # Sizes of the CPU kernels' buffers as the ledger counts them (`perf/kernel_memory.py`); none
    # elsewhere.
    kernel_buffers: tuple[int, ...] = ()

    @property
    def kv_tokens(self) -> int:
        """Tokens that the page pool holds."""
        return self.num_pages * self.page_size


@dataclass(frozen=True, slots=True)
class RemotePlan:
    """What is known of a model that another server runs; `model_path` is that server's URL."""

    model_path: str
    served_names: tuple[str, ...]
    max_model_len: int
