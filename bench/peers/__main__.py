"""Prepares the peers, measures them and fathom in turns, writes results and the table.

python -m bench.peers [--repeats 5] [--only fathom,llama.cpp] [--skip-http] [--resume]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bench.peers import measure
from bench.peers.peers import Peer, all_peers
from bench.peers.prepare import Cache, prepare
from bench.peers.protocol import ROOT, PeerError, end_on_signal
from bench.peers.report import update_document
from bench.peers.roofline import Roofline
from bench.peers.system import commit, machine

_ENGINES = ("transformers", "vllm", "llama.cpp", "fathom")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.peers", description=(__doc__ or "").split("\n")[0])
    home = Path.home() / ".cache" / "fathom-peers"
    parser.add_argument("--cache", type=Path, default=home, help="environments, builds, models")
    parser.add_argument("--checkpoint", type=Path, help="another model than v3-mini")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each gives one sample")
    parser.add_argument("--only", default=",".join(_ENGINES), help="engines, with commas")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--torch-index", help="package index of PyTorch's CPU build")
    parser.add_argument("--skip-http", action="store_true", help="offline cases only")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--minutes", type=float, help="begin no round after so long")
    parser.add_argument("--skip-check", action="store_true", help="do not compare outputs")
    parser.add_argument(
        "--quiet-wait", type=float, default=30.0, help="seconds to wait for an idle machine"
    )
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--report-only", action="store_true", help="only write the table again")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/peers.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/performance.md")
    args = parser.parse_args()
    args.only = set(args.only.split(","))
    if unknown := args.only - set(_ENGINES):
        parser.error(f"--only: {', '.join(sorted(unknown))}; known: {', '.join(_ENGINES)}")
    return args


def chosen_peers(cache: Cache, args: argparse.Namespace) -> list[Peer]:
    """The peers that were asked for."""
    return [one for one in all_peers(cache, args.threads) if one.engine in args.only]


def main() -> None:
    """Everything, in order; results are written after each round."""
    args = arguments()
    end_on_signal()
    if not args.report_only:
        cache = Cache(args.cache, args.checkpoint or args.cache / "v3-mini")
        cache.path.mkdir(parents=True, exist_ok=True)
        prepare(cache, args.only, args.torch_index)
        if args.prepare_only:
            raise SystemExit("\n".join(cache.errors.values()))
        try:
            measure_all(cache, args)
        except PeerError as error:
            raise SystemExit(f"bench.peers: {error}") from error
    report = json.loads(args.output.read_text(encoding="utf-8"))
    print(update_document(args.document, report))


def measure_all(cache: Cache, args: argparse.Namespace) -> None:
    """Compare outputs, then measure round by round, offline and over HTTP."""
    config = json.loads((cache.checkpoint / "config.json").read_text(encoding="utf-8"))
    head: dict[str, Any] = {
        "benchmark": "peers",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "config": {"repeats": args.repeats, "threads": args.threads, "model": config},
    }
    roofline = Roofline(cache.path, args.threads)
    run = measure.Run(cache, args.threads, config["vocab_size"], roofline, args.quiet_wait)
    peers = chosen_peers(cache, args)
    if args.resume:
        run.results = _resumed(args.output, head)
    for peer in peers:
        facts: dict[str, Any] = {"engine": peer.engine, "format": peer.number_format}
        lacking = [cache.errors[step] for step in peer.needs if step in cache.errors]
        facts |= {"error": lacking[0]} if lacking else {}
        run.results.peers.setdefault(peer.name, facts)
    until_s = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
    try:
        for name, take in _rounds(run, cache, args):
            if time.monotonic() >= until_s:
                print("time is up; --resume goes on", flush=True)
                break
            if name not in run.results.done:
                print(name, flush=True)
                take()
                run.results.done.append(name)
                _write(args.output, head, run)
    finally:
        run.close()
    _write(args.output, head, run)


def _rounds(
    run: measure.Run, cache: Cache, args: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything to do, by name and in order. Peers of one format take turns."""
    peers = chosen_peers(cache, args)
    yield "limits of the machine", run.limits
    if not args.skip_check:
        usable = [one for one in peers if "error" not in run.results.peers[one.name]]
        yield "outputs", partial(measure.check_outputs, run, usable)
    takes = {"offline": measure.offline_round, "HTTP": measure.http_round}
    formats = dict.fromkeys(one.number_format for one in peers)
    for kind in ["offline"] if args.skip_http else takes:
        # A run that is stopped has as many samples of every format.
        for number, number_format in product(range(args.repeats), formats):
            # Made anew: the offline rounds find settings for some servers.
            turn = [one for one in chosen_peers(cache, args) if one.number_format == number_format]
            yield f"{kind} {number_format} {number}", partial(takes[kind], run, turn, number)


def _resumed(output: Path, head: dict[str, Any]) -> measure.Results:
    """What a stopped run found. `head` gets its beginning. Raises: PeerError for another run's."""
    report = json.loads(output.read_text(encoding="utf-8"))
    for name in ("commit", "machine", "config"):
        if report[name] != head[name]:
            raise PeerError(f"{output}: {name} is not this run's; measure anew, without --resume")
    head["started"] = report["started"]
    return measure.Results(**{one.name: report[one.name] for one in fields(measure.Results)})


def _write(output: Path, head: dict[str, Any], run: measure.Run) -> None:
    report = {**head, **asdict(run.results)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
