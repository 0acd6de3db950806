"""Small random deployments that are really loaded and run, and the bytes that they hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fathom.config import EngineConfig
from fathom.core.types import Admission, PlanEntry, SamplingParams, StepPlan
from fathom.ops.backends.cpu import library
from fathom.ops.comm import SingleRank
from fathom.ops.quant.qtensor import QTensor
from fathom.perf.resolve import resolve
from fathom.runtime.build import RankModel, load_rank, make_worker, start_threads
from fathom.runtime.worker import Worker
from fathom.spec.deepseek import parse_config
from fathom.spec.hardware import Device, Machine
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.weights.synthetic import write_checkpoint
from tests.weights.published_layouts import AWQ, COMPRESSED, GPTQ_V2, W8A8
from tests.weights.tiny_checkpoints import FP8

STORED = (None, None, FP8, AWQ, GPTQ_V2, W8A8, COMPRESSED)


def random_config(rng: Random) -> dict[str, Any]:
    """A config.json of a small model of either family, in any stored format."""
    is_v3, stored = rng.random() < 0.7, rng.choice(STORED)
    # Packed int4 wants whole groups; other formats any width.
    each = 32 if stored in (AWQ, GPTQ_V2) else rng.choice((8, 32))
    heads, num_layers = rng.randint(1, 5), rng.randint(1, 4)
    experts = rng.choice((2, 4, 8))
    return {
        "architectures": ["DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM"],
        "torch_dtype": "bfloat16",
        "hidden_size": each * rng.randint(2, 8),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": num_layers,
        "first_k_dense_replace": rng.randint(0, num_layers),
        "intermediate_size": each * rng.randint(2, 12),
        "moe_intermediate_size": each * rng.randint(1, 6),
        "vocab_size": 8 * rng.randint(8, 80),
        "kv_lora_rank": each * rng.randint(1, 5),
        "q_lora_rank": rng.choice((None, each * rng.randint(1, 5))),
        "qk_nope_head_dim": each * rng.randint(1, 3),
        "qk_rope_head_dim": rng.choice((8, 16, 32)) if each == 8 else 32,
        "v_head_dim": each * rng.randint(1, 3),
        "n_routed_experts": experts,
        "n_shared_experts": rng.choice((None, 1, 2)),
        "num_experts_per_tok": rng.randint(1, experts // 2),
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc" if is_v3 else "greedy",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": rng.random() < 0.2,
        "num_nextn_predict_layers": rng.randint(0, 1) if is_v3 else 0,
        "quantization_config": stored,
    }


def random_plan(rng: Random, path: Path, ops_backend: str) -> DeploymentPlan:
    """A checkpoint in `path`, and a plan for it on one rank of this machine."""
    config = random_config(rng)
    write_checkpoint(config, path)
    is_kernel, sequences = ops_backend == "cpu", rng.randint(1, 6)
    asked = EngineConfig(
        model=str(path),
        ops_backend=ops_backend,
        threads=1,
        quantization=rng.choice((None, "int8", "int4", "fp8")),
        kv_cache_dtype=rng.choice(("auto", "fp8")) if is_kernel else "auto",
        num_speculative_tokens=rng.randint(0, 2) if config["num_nextn_predict_layers"] else 0,
        block_size=rng.choice((16, 64)),
        max_num_seqs=sequences,
        max_num_batched_tokens=sequences * rng.randint(4, 30),
        max_model_len=rng.choice((256, 700, 1500)),
    )
    machine = Machine((Device("cpu", "host", 2**33, 2**33),), 1, library.isa())
    return resolve(asked, parse_config(config), machine, str(path))


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a loaded and driven rank was seen to hold."""

    weights: int
    kv: int
    buffers: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    tensors: int = 0
    recorded: int = 0


def load(plan: DeploymentPlan, rank: int = 0) -> RankModel:
    """A rank of the plan, by the engine's own loader."""
    start_threads(plan, plan.threads)
    comm = SingleRank() if plan.layout.tp == 1 else Alone(rank, plan.layout.tp)
    return load_rank(plan, Shard(plan.layout, rank), comm, torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Alone:
    """A rank whose peers are not there: enough to load."""

    rank: int
    world_size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Communicator`."""
        raise NotImplementedError

    def all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """See `Communicator`."""
        raise NotImplementedError


def held_bytes(plan: DeploymentPlan) -> Held:
    """Load the plan's rank, run its largest steps, and look."""
    rank = load(plan)
    weights = storage_bytes(rank.model)
    if plan.ops_backend != "cpu":
        return Held(weights, rank.kv_cache.nbytes)
    driver = Driver(plan, make_worker(plan, rank, SingleRank()))
    tensors, _ = driver.watch(driver.largest_steps)
    _, recorded = driver.watch(driver.decode_steps)
    buffers, asked = library.buffers()
    # Without drafts, the engine prepares the next step while one runs.
    tensors += driver.batch_bytes * (1 if plan.num_drafts else 2)
    return Held(weights, rank.kv_cache.nbytes, buffers, asked, tensors, recorded)


class Driver:
    """Runs steps of a plan's largest sizes on a worker. Sequences begin where they are asked to:
    what comes before is told as known, and what lies in the pages does not matter."""

    def __init__(self, plan: DeploymentPlan, worker: Worker) -> None:
        self._plan, self._worker = plan, worker
        self._ids, self._steps = count(), count(1)
        self._live: tuple[int, ...] = ()
        self.batch_bytes = 0
        make_batch = worker._pages.batch

        def batch(*arguments: Any) -> Any:
            made = make_batch(*arguments)
            self.batch_bytes = max(self.batch_bytes, made[0].untyped_storage().nbytes())
            return made

        worker._pages.batch = batch  # type: ignore[method-assign]

    def largest_steps(self) -> None:
        """All tokens of a step, with log-probabilities; with drafts; and the most queries of each
        sequence whose splits of a long context run side by side."""
        plan = self._plan
        each = plan.max_batch_tokens // plan.max_sequences
        self.step(plan.max_sequences, each, plan.max_model_len)
        if plan.num_drafts:
            self.step(plan.max_sequences, each, plan.max_model_len, num_drafts=plan.num_drafts)
        short = min(each, 256 // plan.model.mla.num_heads)
        self.step(plan.max_sequences, short, plan.max_model_len)
        self.step(1, min(plan.max_batch_tokens, plan.max_model_len), plan.max_model_len)

    def decode_steps(self) -> None:
        """Steps of one token a sequence, of every number of sequences and width of page tables."""
        plan = self._plan
        pages = -(-plan.max_model_len // plan.page_size)
        for size in range(1, plan.max_sequences + 1):
            for bits in range((pages - 1).bit_length() + 1):
                length = min(plan.max_model_len, plan.page_size << bits)
                self.step(size, 1, length, is_scored=False)

    def step(
        self,
        num_sequences: int,
        num_tokens: int,
        length: int,
        *,
        num_drafts: int = 0,
        is_scored: bool = True,
    ) -> None:
        """Run new sequences that end at `length` with so many tokens each, drafts among them."""
        plan = self._plan
        wants = 0 if is_scored else None
        sampling = SamplingParams(
            temperature=0.0, max_tokens=9, logprobs=wants, prompt_logprobs=wants
        )
        needed = -(-length // plan.page_size)
        start, entries = length - num_tokens, []
        for index in range(num_sequences):
            pages = tuple(range(index * needed, (index + 1) * needed))
            known = Admission((1,) * start, length, sampling, 0, ())
            tokens = (1,) * (num_tokens - num_drafts)
            entries.append(
                PlanEntry(
                    next(self._ids),
                    start,
                    tokens,
                    tuple(page % plan.num_pages for page in pages),
                    drafts=(2,) * num_drafts,
                    admission=known,
                )
            )
        drafts = plan.num_drafts if is_scored else 0
        self._worker.execute(StepPlan(next(self._steps), tuple(entries), self._live, drafts))
        self._live = tuple(entry.id for entry in entries)

    def watch(self, run: Callable[[], None]) -> tuple[int, int]:
        """Bytes that torch allocated while `run` ran: at the peak, and kept at its end."""
        gc.disable()  # what is freed meanwhile must be the run's own
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                run()
        finally:
            gc.enable()
        assert profiler.profiler is not None
        events = profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        live = peak = 0
        for _, num_bytes in changes:
            live += num_bytes
            peak = max(peak, live)
        return peak, live


def storage_bytes(value: object) -> int:
    """Bytes of the distinct tensors that a model holds."""
    storages = {one.data_ptr(): one.nbytes() for one in _storages(value, set())}
    return sum(storages.values())


def _storages(value: object, seen: set[int]) -> Iterator[torch.UntypedStorage]:
    if id(value) in seen or isinstance(value, str | int | float):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage()
        return
    inside: list[object] = []
    if isinstance(value, QTensor):
        inside += value.tensors
    elif isinstance(value, dict):
        inside += value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inside += value
    elif is_dataclass(value):
        inside += (getattr(value, field.name) for field in fields(value))
    elif type(value).__module__.startswith("fathom."):
        inside += vars(value).values()
    for one in inside:
        yield from _storages(one, seen)
