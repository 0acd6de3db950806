"""The peers: what each needs, how its driver and its server are started."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import vllm
from bench.peers.prepare import Cache, preloads
from bench.peers.protocol import ROOT

SERVED_NAME = "peer"
_GIB = 1 << 30
_KV = str(2 * _GIB)


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine in one number format. `needs` are steps of the preparation; `memory_bytes` what
    its driver is expected to take; `server` a command that lacks the port, None without one."""

    name: str
    engine: str
    number_format: str
    needs: tuple[str, ...]
    driver: tuple[str, ...]
    memory_bytes: int
    server: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    mode: str = ""


def all_peers(cache: Cache, threads: int) -> list[Peer]:
    """Every peer, fathom last."""
    return [
        _transformers(cache, threads),
        _vllm(cache, threads, is_eager=True),
        _vllm(cache, threads, is_eager=False),
        *(_llama(cache, threads, one) for one in ("bf16", "int8", "int4")),
        *(_fathom(cache, threads, one) for one in ("bf16", "int8", "int4")),
    ]


def _module(name: str) -> tuple[str, str]:
    return "-m", f"bench.peers.{name}"


def _transformers(cache: Cache, threads: int) -> Peer:
    command = (str(cache.python("hf")), *_module("hf"), str(cache.checkpoint))
    return Peer(
        name="transformers bf16",
        engine="transformers",
        number_format="bf16",
        needs=("hf", "hf-packages"),
        driver=(*command, "--threads", str(threads)),
        memory_bytes=7 * _GIB,
        environment={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


def reference_command(cache: Cache, threads: int) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The driver of transformers in float32, by which the others' output is judged, and its
    environment."""
    peer = _transformers(cache, threads)
    return (*peer.driver, "--dtype", "float32"), peer.environment


def _vllm(cache: Cache, threads: int, *, is_eager: bool) -> Peer:
    python, mode = str(cache.python("vllm")), "eager" if is_eager else "compiled"
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(cache.checkpoint)]
    server += ["--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--dtype", "bfloat16"]
    server += ["--max-model-len", str(vllm.MAX_MODEL_LEN), "--enable-prefix-caching"]
    server += ["--max-num-seqs", str(vllm.MAX_NUM_SEQS)]
    server += ["--max-num-batched-tokens", str(vllm.MAX_BATCHED_TOKENS)]
    flags = ("--enforce-eager",) if is_eager else ()
    driver = (python, *_module("vllm"), str(cache.checkpoint), "--threads", str(threads))
    environment = vllm.environment(
        threads, [str(one) for one in preloads(cache)], str(cache.path / "vllm-cache")
    )
    return Peer(
        name=f"vLLM bf16 {mode}",
        engine="vllm",
        number_format="bf16",
        needs=("vllm",),
        driver=(*driver, "--eager") if is_eager else driver,
        memory_bytes=6 * _GIB,
        server=(*server, *flags, "--port"),
        environment={"PYTHONPATH": str(ROOT), **environment},
        mode=mode,
    )


def _llama(cache: Cache, threads: int, number_format: str) -> Peer:
    model = str(cache.gguf(number_format))
    tuning = cache.path / f"tuning-{cache.checkpoint.name}-{number_format}.json"
    tools = ("--tools", str(cache.path / "llama-build" / "bin"), "--tuning", str(tuning))
    server = [str(cache.tool("llama-server")), "-m", model, "--alias", SERVED_NAME]
    server += ["--host", "127.0.0.1", "-t", str(threads), "-tb", str(threads)]
    # 32 sequences that share the cells: 64 requests of the mixed load would each fit.
    server += ["-np", "32", "-c", "24576", "-kvu", "-b", "2048"]
    return Peer(
        name=f"llama.cpp {number_format}",
        engine="llama.cpp",
        number_format=number_format,
        needs=("llama-build", "convert", f"gguf-{number_format}"),
        driver=(
            *(sys.executable, *_module("llama"), *tools),
            *("--model", model, "--threads", str(threads)),
        ),
        memory_bytes=4 * _GIB,
        server=(*server, *_tuned(tuning), "--port"),
        environment={"PYTHONPATH": str(ROOT)},
    )


def _tuned(tuning: Path) -> tuple[str, ...]:
    """Flags of llama.cpp's server from what was best offline: attention as in decoding 8 sequences,
    the physical batch as in a prefill of 512."""
    if not tuning.exists():
        return ()
    best: dict[str, list[str]] = json.loads(tuning.read_text(encoding="utf-8"))
    attention = best.get("decode batch 8", ["-fa", "auto"])[:2]
    return (*attention, *best.get("prefill 512", [])[2:])


def _fathom(cache: Cache, threads: int, number_format: str) -> Peer:
    flags = () if number_format == "bf16" else ("--quantization", number_format)
    checkpoint, count = str(cache.checkpoint), str(threads)
    start = "from fathom.cli import main; main()"
    server = [sys.executable, "-c", start, "serve", checkpoint, "--dtype", "bfloat16"]
    server += ["--served-model-name", SERVED_NAME, "--kv-cache-memory-bytes", _KV]
    server += ["--max-num-seqs", "64", "--threads", count, *flags]
    driver = (sys.executable, *_module("fathom_side"), checkpoint, "--threads", count)
    return Peer(
        name=f"fathom {number_format}",
        engine="fathom",
        number_format=number_format,
        needs=(),
        driver=(*driver, *flags),
        memory_bytes=4 * _GIB,
        server=(*server, "--port"),
        environment={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    )
