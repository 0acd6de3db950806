"""What was asked: every setting of the engine, documented once.

Flags, TOML keys and the reference page follow from these fields. None means "decide for me"; only
`perf.resolve` turns it into a value, with a reason. The environment is read here and nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from fathom.errors import ConfigError


def setting(default: object, doc: str, *flags: str, wanted: str = "", unit: str = "") -> Any:
    """A config's field: its default, its documentation, its flags (the first is canonical), what
    values are wanted, and the unit."""
    metadata = {"doc": doc, "flags": flags, "wanted": wanted, "unit": unit}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the engine, as asked."""

    model: str | None = setting(
        None,
        "Directory of the checkpoint; the embedded model where not given.",
        "--model",
        "--model-path",
    )
    tokenizer: str | None = setting(
        None,
        "Directory of the tokenizer; the checkpoint's where not given.",
        "--tokenizer",
        "--tokenizer-path",
    )
    served_model_name: tuple[str, ...] = setting(
        (), "Names in /v1/models; the first is echoed.", "--served-model-name"
    )
    dtype: str = setting(
        "auto", "Number format of the computation.", "--dtype", wanted="auto, float32 or bfloat16"
    )
    quantization: str | None = setting(
        None,
        "Format in which matrices are held, whatever the checkpoint stores; not given: as they "
        "are stored.",
        "--quantization",
        "-q",
        wanted="int8, int4 or fp8",
    )
    ops_backend: str = setting(
        "auto", "What computes the ops.", "--ops-backend", wanted="auto, reference or cpu"
    )
    kv_cache_dtype: str = setting(
        "auto",
        "Number format of the latent KV cache.",
        "--kv-cache-dtype",
        wanted="auto, float32, bfloat16 or fp8",
    )
    device: str = setting("auto", "Where to run.", "--device", wanted="auto, cpu or cuda")
    max_model_len: int | None = setting(
        None,
        "Longest sequence, prompt and answer together. Given: demanded. Not given: the "
        "model's, or the largest that fits.",
        "--max-model-len",
        "--context-length",
        unit="tokens",
        wanted="a count such as 4096, 32k or 128K; auto or -1",
    )
    tensor_parallel_size: int = setting(
        1, "Ranks that share each layer.", "--tensor-parallel-size", "-tp", "--tp-size", "--tp"
    )
    gpu_memory_utilization: float | None = setting(
        None,
        "Share of the device's memory that fathom may use, weights and all.",
        "--gpu-memory-utilization",
        wanted="a number in (0, 1]",
    )
    kv_cache_memory_bytes: int | None = setting(
        None,
        "Size of the KV page pool of each rank; overrides the share.",
        "--kv-cache-memory-bytes",
        unit="bytes",
        wanted="a size such as 4GiB or 2000000000",
    )
    block_size: int = setting(
        64, "Tokens in a page of KV.", "--block-size", "--page-size", unit="tokens"
    )
    max_num_seqs: int | None = setting(
        None, "Most sequences in a step.", "--max-num-seqs", "--max-running-requests"
    )
    max_num_batched_tokens: int | None = setting(
        None,
        "Most tokens in a step; longer prompts run in chunks.",
        "--max-num-batched-tokens",
        "--chunked-prefill-size",
        "--max-prefill-tokens",
        unit="tokens",
    )
    max_num_queued_reqs: int = setting(
        1024,
        "Most requests that wait; more are answered 429.",
        "--max-num-queued-reqs",
        "--max-queued-requests",
    )
    enable_prefix_caching: bool = setting(
        True, "Share KV pages of equal prefixes.", "--enable-prefix-caching"
    )
    num_speculative_tokens: int | None = setting(
        None,
        "Tokens that the MTP layer drafts a step; 0 is off. Not given: off.",
        "--num-speculative-tokens",
    )
    overlap_scheduling: bool = setting(
        True, "Plan the next step while one runs.", "--overlap-scheduling", "--async-scheduling"
    )
    loop_guard_tokens: int = setting(
        1024,
        "Tokens of one stretch over and over that end an answer (finish_reason "
        "'repetition'); 0 is off.",
        "--loop-guard-tokens",
        unit="tokens",
    )
    loop_guard_repeats: int = setting(
        8, "Times that the stretch must stand there at least.", "--loop-guard-repeats"
    )
    seed: int = setting(
        0, "Source of the seeds of requests that give none.", "--seed", "--random-seed"
    )
    threads: int | None = setting(
        None, "CPU threads of the kernels, all ranks together.", "--threads"
    )
    step_timeout_s: float = setting(
        300.0,
        "A step that takes longer is an engine failure.",
        "--step-timeout",
        "--watchdog-timeout",
        unit="seconds",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value, wanted = getattr(self, one.name), str(one.type)
            _check(one.name, _is_of(value, wanted), value, f"a value of type {wanted}")
        for name in ("tensor_parallel_size", "block_size", "max_num_queued_reqs"):
            _check(name, getattr(self, name) >= 1, getattr(self, name), "a count of 1 or more")
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "threads"):
            value = getattr(self, name)
            _check(name, value is None or value >= 1, value, "a count of 1 or more")
        share = self.gpu_memory_utilization
        _check("gpu_memory_utilization", share is None or 0 < share <= 1, share, "in (0, 1]")
        size = self.kv_cache_memory_bytes
        _check("kv_cache_memory_bytes", size is None or size > 0, size, "more than 0 bytes")
        drafts = self.num_speculative_tokens
        _check("num_speculative_tokens", drafts is None or 0 <= drafts <= 8, drafts, "0 to 8")
        _check(
            "loop_guard_tokens", self.loop_guard_tokens >= 0, self.loop_guard_tokens, "0 or more"
        )
        repeats = self.loop_guard_repeats
        _check("loop_guard_repeats", repeats >= 2, repeats, "2 or more")
        _check("step_timeout_s", self.step_timeout_s > 0, self.step_timeout_s, "over 0 seconds")


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "None": type(None),
}


def _is_of(value: object, annotation: str) -> bool:
    """Whether `value` is of the annotated type; True is not a number."""
    if annotation == "tuple[str, ...]":
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    names = annotation.split(" | ")
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def check_setting(config: type[Any], name: str, is_right: bool, found: object, wanted: str) -> None:
    """Raises: ConfigError that names field `name` of `config`, and its flag, unless `is_right`."""
    if not is_right:
        flag = config.__dataclass_fields__[name].metadata["flags"][0]
        raise ConfigError(f"{flag} ({name}) is not valid", found=repr(found), wanted=wanted)


_check = partial(check_setting, EngineConfig)


def environment_api_key() -> str | None:
    """The API key that the environment gives, None where it gives none."""
    return os.environ.get("FATHOM_API_KEY") or os.environ.get("VLLM_API_KEY") or None


def environment_secret(name: str) -> str | None:
    """The secret in a variable that a setting names, None where there is none."""
    return os.environ.get(name) or None


def environment_runtime_dir() -> str | None:
    """This user's directory for sockets, None where the environment names none that is there."""
    path = os.environ.get("XDG_RUNTIME_DIR")
    return path if path and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK) else None


def environment_data_dir() -> Path:
    """This user's directory for what fathom keeps: `fathom` in XDG_DATA_HOME, or in its default."""
    named = os.environ.get("XDG_DATA_HOME")
    return (Path(named) if named else Path.home() / ".local/share") / "fathom"


def environment_language() -> str:
    """The locale of messages, such as zh_CN.UTF-8; empty where none is named."""
    return next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")


def environment_hardware_file() -> str | None:
    """The file with the user's changes to the hardware catalogue, None where none is named."""
    return os.environ.get("FATHOM_HARDWARE") or None


_CHILD_VARIABLES = (
    *("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES"),
)


def child_environment() -> dict[str, str]:
    """The variables that a child process of fathom inherits: places to find things, no secrets."""
    return {name: os.environ[name] for name in _CHILD_VARIABLES if name in os.environ}
