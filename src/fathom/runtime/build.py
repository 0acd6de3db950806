"""From a deployment plan to an executor that runs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from fathom.core.executor import Capacity, Executor
from fathom.errors import ConfigError
from fathom.models.registry import LanguageModel, build_model
from fathom.ops.api import Backend
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.comm import Communicator, SingleRank
from fathom.ops.select import needs_of, select_backends
from fathom.runtime.executors.distributed import DistributedExecutor
from fathom.runtime.executors.local import LocalExecutor
from fathom.runtime.kv import allocate_cache
from fathom.runtime.replay import ReplayedModel
from fathom.runtime.worker import Model, Worker, WorkerParts
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.weights.open import load_parameters, open_checkpoint, torch_dtype

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankModel:
    """What a rank computes with: its slices of the weights, and a cache for all their layers."""

    model: LanguageModel
    ops: Backend
    kv_cache: torch.Tensor


def build_executor(plan: DeploymentPlan) -> Executor:
    """Load the model and make the executor that the plan asks for; it is ready when this returns.

    Raises: CheckpointError, CapacityError, ConfigError; EngineError where a rank does not arrive.
    """
    if plan.layout.world_size > 1:
        return DistributedExecutor(plan, capacity_of(plan))
    start_threads(plan, plan.threads)
    device = torch.device(plan.device)
    return local_executor(plan, build_worker(plan, Shard(), SingleRank(), device))


def local_executor(plan: DeploymentPlan, worker: Worker) -> LocalExecutor:
    """An executor in this process of the plan's only rank."""
    if plan.ops_backend != "cpu":
        return LocalExecutor(worker, capacity_of(plan))
    return LocalExecutor(worker, capacity_of(plan), on_start=library.pin_caller)


def start_threads(plan: DeploymentPlan, threads: int, first_cpu: int = 0) -> None:
    """Give this process its CPU threads: torch's, which the kernels' replace once the weights are
    there. The kernels' are pinned, from `first_cpu` on of those that are ours."""
    torch.set_num_threads(threads)
    if plan.ops_backend == "cpu":
        library.start_threads(threads, first_cpu)


def capacity_of(plan: DeploymentPlan) -> Capacity:
    """What an executor of this plan can take."""
    return Capacity(
        num_pages=plan.num_pages,
        page_size=plan.page_size,
        max_batch_tokens=plan.max_batch_tokens,
        max_sequences=plan.max_sequences,
        depth=1 + plan.run_ahead,
    )


def build_worker(
    plan: DeploymentPlan, shard: Shard, comm: Communicator, device: torch.device
) -> Worker:
    """One rank: its slices of the weights, its cache, its worker."""
    return make_worker(plan, load_rank(plan, shard, comm, device), comm)


def load_rank(
    plan: DeploymentPlan, shard: Shard, comm: Communicator, device: torch.device
) -> RankModel:
    """One rank's model and cache. Raises: ConfigError, CheckpointError, CapacityError."""
    if plan.num_drafts and not plan.model.num_mtp_layers:
        raise ConfigError(
            "--num-speculative-tokens",
            found=f"{plan.num_drafts}, and a model without a layer that drafts",
            wanted="0 for this model",
        )
    dtype = torch_dtype(plan.compute_dtype)
    ops = _choose_ops(plan)
    params = load_parameters(
        open_checkpoint(Path(plan.model_path)),
        shard,
        dtype=dtype,
        device=device,
        dequantize=plan.dequantize,
        quantization=plan.quantization,
        mtp=plan.num_drafts > 0,
    )
    model = build_model(plan.model, params, ops=ops, comm=comm, shard=shard, dtype=dtype)
    if plan.ops_backend == "cpu":
        # From now on torch's threads would only take cores from the kernels'.
        torch.set_num_threads(1)
        library.reserve(plan.kernel_buffers)
    return RankModel(model=model, ops=ops, kv_cache=allocate_cache(plan, device))


def make_worker(plan: DeploymentPlan, rank: RankModel, comm: Communicator) -> Worker:
    """What runs the steps of a rank."""
    return Worker(
        WorkerParts(
            model=_replayed(rank, comm, plan.max_sequences),
            draft_model=rank.model.mtp[0] if plan.num_drafts else None,
            ops=rank.ops,
            comm=comm,
            kv_cache=rank.kv_cache,
            page_size=plan.page_size,
            max_position=plan.model.max_position,
        )
    )


def _replayed(rank: RankModel, comm: Communicator, max_sequences: int) -> Model:
    """The model, its small steps replayed where one rank computes all by the CPU kernels: calls
    between ranks cannot be recorded."""
    if comm.world_size > 1 or not isinstance(rank.ops, CpuBackend):
        return rank.model.main
    return ReplayedModel(rank.model.main, rank.ops, max_sequences)


def _choose_ops(plan: DeploymentPlan) -> Backend:
    """The backend of each op, said once at start."""
    name = plan.compute_dtype.name
    if name not in ("float32", "bfloat16"):
        raise ConfigError("--dtype", found=name, wanted="float32 or bfloat16")
    needs = needs_of(plan.model, device=plan.device, dtype=name, is_quantized=not plan.dequantize)
    selection = select_backends(needs, forced=plan.ops_backend)
    for backend in dict.fromkeys(choice.backend for choice in selection.choices):
        own = [choice for choice in selection.choices if choice.backend == backend]
        names = ",".join(choice.need.op for choice in own)
        _log.info("ops backend=%s reason=%r ops=%s", backend, own[0].reason, names)
    return selection.ops
