"""Decisions that need no sum of bytes: device, ranks, drafts, formats by name, sizes of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, TypeVar, cast, get_args

from fathom.config import EngineConfig
from fathom.errors import ConfigError
from fathom.spec.families import check_tensor_parallel
from fathom.spec.formats import BFLOAT16, FLOAT32, FP8_LATENT, Format
from fathom.spec.hardware import Machine
from fathom.spec.held import Quantization
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout
from fathom.spec.plan import Decision

T = TypeVar("T")

MAX_SEQUENCES = {"cuda": 256, "cpu": 64}
BATCH_TOKENS = {"cuda": 8192, "cpu": 512}
# vLLM's names of ways in which a checkpoint may be quantised already.
_STORED_METHODS = {
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "compressed-tensors": "int8",
    "w8a8_int8": "int8",
}
# vLLM's names of FP8 caches.
_KV_FP8 = ("fp8", "fp8_e4m3", "fp8_ds_mla")
_DTYPES = {"float32": FLOAT32, "float": FLOAT32, "bfloat16": BFLOAT16}


@dataclass(slots=True)
class Notes:
    """The decisions so far."""

    config: EngineConfig
    decisions: list[Decision] = field(default_factory=list)

    def say(self, name: str, value: T, reason: str, source: str, shown: str = "") -> T:
        """Record a decision and give its value back."""
        self.decisions.append(Decision(name, shown or str(value), reason, source))
        return value

    def asked(self, name: str, asked: T | None, default: T, reason: str) -> T:
        """`asked` where it was given, else `default` with the reason for it."""
        if asked is not None:
            return self.say(name, asked, "as asked", "asked")
        return self.say(name, default, reason, "default")

    def setting(self, name: str, key: str, reason: str) -> Any:
        """A setting of the config that has a default: says whether it was changed."""
        value = getattr(self.config, key)
        if value != EngineConfig.__dataclass_fields__[key].default:
            return self.say(name, value, "as asked", "asked")
        return self.say(name, value, reason, "default")


def choose_device(notes: Notes, machine: Machine) -> str:
    """`cpu` or `cuda`. Raises: ConfigError for what the machine has not."""
    asked = notes.config.device
    if asked not in ("auto", "cpu", "cuda"):
        wanted = _one_of(asked, "auto", "cpu", "cuda")
        raise ConfigError("--device (device)", found=repr(asked), wanted=wanted)
    kinds = {device.kind for device in machine.devices}
    if not kinds:
        raise ConfigError("--device (device)", found="no device", wanted="a CPU or a CUDA device")
    if asked != "auto":
        if asked not in kinds:
            raise ConfigError(
                "--device (device)",
                found=f"{asked}, which this machine has not",
                wanted=f"auto or {' or '.join(sorted(kinds))}",
            )
        return notes.say("device", asked, "as asked", "asked")
    chosen = "cuda" if "cuda" in kinds else "cpu"
    names = ", ".join(sorted({d.name for d in machine.devices if d.kind == chosen}))
    return notes.say("device", chosen, f"found {names}", "machine")


def choose_layout(notes: Notes, model: ModelSpec, machine: Machine, device: str) -> Layout:
    """Ranks. Raises: ConfigError where they do not divide the model or lack devices."""
    tp = notes.config.tensor_parallel_size
    check_tensor_parallel(model, tp)
    num_devices = sum(one.kind == device for one in machine.devices)
    if device == "cuda" and tp > num_devices:
        raise ConfigError(
            "--tensor-parallel-size (tensor_parallel_size)",
            found=f"{tp} ranks on {num_devices} CUDA devices",
            wanted=f"at most {num_devices}: each rank has a device to itself",
        )
    layout, reason = Layout(tp=tp), "one rank holds everything"
    if tp == 1:
        return notes.say("layout", layout, reason, "default", shown="tp=1")
    return notes.say("layout", layout, "as asked", "asked", shown=f"tp={tp}")


def choose_backend(notes: Notes, machine: Machine, device: str) -> str:
    """What computes the ops: `cpu` or `reference`. Raises: ConfigError where it cannot."""
    asked, name = notes.config.ops_backend, "--ops-backend (ops_backend)"
    wants_wide = asked_dtype(notes.config.dtype, "--dtype (dtype)") == FLOAT32
    missing = ""
    if device != "cpu":
        missing = f"the device is {device}"
    elif not machine.cpu_isa:
        missing = machine.cpu_isa_note
    elif wants_wide:
        missing = "the kernels compute in bfloat16, and float32 was asked for"
    if asked not in ("auto", "cpu", "reference"):
        wanted = _one_of(asked, "auto", "cpu", "reference")
        raise ConfigError(name, found=repr(asked), wanted=wanted)
    if asked == "cpu" and missing:
        raise ConfigError(name, found=f"cpu, but {missing}", fix="leave it out, or mend that")
    if asked != "auto":
        return notes.say("ops_backend", asked, "as asked", "asked")
    if missing:
        return notes.say("ops_backend", "reference", missing, "machine")
    return notes.say("ops_backend", "cpu", f"kernels for {machine.cpu_isa}", "machine")


def choose_quantization(notes: Notes, model: ModelSpec) -> Quantization | None:
    """Format of the matrices in memory. Raises: ConfigError for another name."""
    asked = notes.config.quantization
    if asked is None or asked == "none":
        return notes.say("quantization", None, "weights stay as they are stored", "default")
    stored = model.packing or model.weight_format.name
    if asked in _STORED_METHODS and stored.startswith(_STORED_METHODS[asked]):
        return notes.say("quantization", None, "as the checkpoint stores them", "asked")
    for known in get_args(Quantization):
        if asked == known:
            return notes.say("quantization", cast(Quantization, known), "as asked", "asked")
    raise ConfigError(
        "--quantization (quantization)",
        found=f"{asked!r}; the checkpoint's weights are {stored}",
        wanted=_one_of(asked, "none", *get_args(Quantization)),
        fix="leave it out: AWQ, GPTQ, FP8 and int8 are read from config.json",
    )


def choose_drafts(notes: Notes, model: ModelSpec) -> int:
    """Tokens drafted a step. Raises: ConfigError for a model that cannot draft."""
    asked = notes.config.num_speculative_tokens
    if asked and not model.num_mtp_layers:
        raise ConfigError(
            "--num-speculative-tokens (num_speculative_tokens)",
            found=f"{asked}, but the checkpoint has no MTP layer",
            wanted="0, or a checkpoint with its MTP layer",
        )
    return notes.asked("num_drafts", asked, 0, "drafting is off unless asked for")


def asked_dtype(text: str, name: str) -> Format | None:
    """A format by its name, None for auto. Raises: ConfigError for others."""
    if text == "auto":
        return None
    if text in _DTYPES:
        return _DTYPES[text]
    if text in ("half", "float16", "fp16"):
        raise ConfigError(
            name,
            found=text,
            wanted="auto, bfloat16 or float32",
            fix="use bfloat16: DeepSeek's models are trained in it, and their activations exceed "
            "the largest float16, 65504",
        )
    wanted = _one_of(text, "auto", "bfloat16", "float32")
    raise ConfigError(name, found=repr(text), wanted=wanted)


def _one_of(asked: str, *names: str) -> str:
    """The names that there are, and the nearest to what was asked."""
    near = get_close_matches(asked, names, 1, 0.5)
    nearest = f" (nearest: {near[0]})" if near else ""
    return f"{', '.join(names[:-1])} or {names[-1]}{nearest}"


def choose_kv_dtype(notes: Notes, compute: Format, backend: str) -> Format:
    """The format of the cache. Raises: ConfigError where the backend cannot attend to it."""
    name = "--kv-cache-dtype (kv_cache_dtype)"
    text = notes.config.kv_cache_dtype
    if text in _KV_FP8:
        if backend == "cpu":
            return notes.say("kv_dtype", FP8_LATENT, "as asked", "asked", shown=FP8_LATENT.name)
        raise ConfigError(
            name,
            found=f"{text} on the {backend} backend, which attends in the computation's format",
            wanted=f"auto or {compute.name}",
        )
    asked = asked_dtype(text, name)
    if asked not in (None, compute):
        raise ConfigError(
            name,
            found=text,
            wanted=f"auto or {compute.name}, the format of the computation"
            + (", or fp8" if backend == "cpu" else ""),
            fix=f"leave it out, or give --dtype {text} too",
        )
    if asked is not None:
        return notes.say("kv_dtype", compute, "as asked", "asked", shown=compute.name)
    reason = "attention reads latents in the format of the computation"
    return notes.say("kv_dtype", compute, reason, "default", shown=compute.name)


def choose_batch(notes: Notes, device: str, num_drafts: int) -> tuple[int, int]:
    """Sequences and tokens of a step, which has a place for every sequence and its drafts.

    Raises: ConfigError where the tokens asked for are too few.
    """
    config, each = notes.config, 1 + num_drafts
    tokens = config.max_num_batched_tokens
    sequences, default = config.max_num_seqs, MAX_SEQUENCES[device]
    if tokens is not None and tokens < each * (sequences or 1):
        raise ConfigError(
            "--max-num-batched-tokens (max_num_batched_tokens)",
            found=str(tokens),
            wanted=f"at least {each * (sequences or 1)}: max_num_seqs"
            + (" with their drafts" if num_drafts else ""),
        )
    if sequences is None and tokens is not None:
        default = min(default, tokens // each)
    sequences = notes.asked("max_sequences", sequences, default, f"usual on {device}")
    usual = max(BATCH_TOKENS[device], each * sequences)
    return sequences, notes.asked("max_batch_tokens", tokens, usual, f"usual on {device}")


def choose_threads(notes: Notes, machine: Machine, backend: str) -> int:
    """CPU threads of the ops. Torch's leave a core free: they wait for each other at the end of
    every op, and lose far more to a process that takes one of their cores than they gain by it.
    The kernels' threads share work out in small pieces, and lose what is taken only."""
    if backend == "cpu":
        reason = "one for each core; their work is shared out in small pieces"
        return notes.asked("threads", notes.config.threads, machine.num_cores, reason)
    reason = "one for each core but one, for the API process"
    return notes.asked("threads", notes.config.threads, max(1, machine.num_cores - 1), reason)


def choose_served_names(notes: Notes, model_path: str) -> tuple[str, ...]:
    """Names that clients may give; the first is answered."""
    asked = notes.config.served_model_name
    if asked:
        return notes.say("served_names", asked, "as asked", "asked", shown=", ".join(asked))
    name = PurePath(model_path).name or model_path
    if notes.config.model is None:
        name = "fathom-embedded"
    return notes.say("served_names", (name,), "after the directory", "default", shown=name)
