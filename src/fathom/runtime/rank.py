"""A rank process: started by the distributed executor, it runs the plans that it is sent."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed

from fathom.errors import FathomError
from fathom.ops.comm import Communicator, TorchGroup
from fathom.runtime.build import build_worker, start_threads
from fathom.runtime.executors.wire import (
    FollowingMasks,
    FramedSocket,
    RankFailed,
    RankReady,
    RankResult,
    RankStart,
    decode_plan,
    decode_start,
    encode,
)
from fathom.spec.parallel import Shard

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serve the connection given by its descriptor until it closes; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connection", type=int, required=True, help="descriptor of a socket")
    parser.add_argument("--rank", type=int, required=True, help="index of this rank")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    connection = FramedSocket(socket.socket(fileno=asked.connection))
    body = connection.receive()
    if body is None:
        return 0
    try:
        _serve(connection, decode_start(body), asked.rank)
    except Exception as error:
        _log.exception("rank_failed")
        connection.send(encode(_failure(error)))
        return 1
    return 0


def _failure(error: Exception) -> RankFailed:
    kind = type(error).__name__
    if isinstance(error, FathomError):
        return RankFailed(kind, error.what, error.found, error.wanted, error.fix)
    return RankFailed(kind, "a rank failed", f"{kind}: {error}")


def _serve(connection: FramedSocket, start: RankStart, rank: int) -> None:
    threads = max(1, start.plan.threads // start.plan.layout.world_size)
    start_threads(start.plan, threads, first_cpu=rank * threads)
    comm = _join_group(start, rank)
    shard = Shard(start.plan.layout, rank)
    worker = build_worker(start.plan, shard, comm, _device(start.plan.device, rank))
    connection.send(encode(RankReady()))
    while (body := connection.receive()) is not None:
        masks = FollowingMasks(connection.receive)
        result = worker.execute(decode_plan(body, masks))
        if masks.count:
            masks.bits()  # a rank that does not sample has not read them
        if rank == 0:
            connection.send(encode(RankResult(result)))


def _join_group(start: RankStart, rank: int) -> Communicator:
    """Meet the other ranks. Gloo: it reduces on CPUs, and takes CUDA tensors by way of the host."""
    world_size = start.plan.layout.world_size
    store = torch.distributed.FileStore(  # type: ignore[attr-defined]  # missing in its stubs
        start.store_path, world_size
    )
    torch.distributed.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=start.plan.step_timeout_s),
    )
    group = torch.distributed.group.WORLD
    assert group is not None
    return TorchGroup(group, timeout_s=start.plan.step_timeout_s)


def _device(kind: str, rank: int) -> torch.device:
    if kind != "cuda":
        return torch.device(kind)
    return torch.device("cuda", rank % torch.cuda.device_count())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
