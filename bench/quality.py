"""What number formats cost on the embedded model: by format, by groups of int4, and by role.

    python -m bench.quality [--num-tokens 4096] [--output bench/results/quality.json]

Formats and tasks are those of `fathom eval`. Groups of 64 and 32 are those of checkpoints that
`fathom quantize` writes. By role, one kind of matrix is held in four bits (or eight) and all others
in bfloat16: where a format loses, and what leaving that role out of it would cost in bytes.
`python -m bench.quality_page` writes docs/quality.md from the results.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from fathom.config import EngineConfig
from fathom.engine.heldout import Question, documents, embedded_heldout, read_rows
from fathom.engine.quality import Material, evaluate, plan_of
from fathom.engine.text_side import load_text
from fathom.models.registry import build_model
from fathom.ops.api import Weight
from fathom.ops.backends.cpu import library
from fathom.ops.backends.cpu.backend import CpuBackend
from fathom.ops.comm import SingleRank
from fathom.runtime.build import RankModel, start_threads
from fathom.runtime.kv import allocate_cache
from fathom.runtime.quality import LoadedModel, compare, predict
from fathom.spec.deepseek_params import parameter_table
from fathom.spec.formats import BFLOAT16, INT8_CHANNEL, Format, int4_group
from fathom.spec.parallel import Shard
from fathom.spec.plan import DeploymentPlan
from fathom.spec.quality import FormatQuality, summarize
from fathom.weights.embedded import embedded_path
from fathom.weights.open import load_parameters, open_checkpoint
from fathom.weights.quantize import quantize_checkpoint

RESULTS = Path(__file__).parent / "results" / "quality.json"
FORMATS = ("bf16", "fp8", "int8", "int4")
# Matrices that the model joins are held in one format.
ROLES = (
    ("q_a", "kv_a"),
    ("q_b",),
    ("kv_b",),
    ("o",),
    ("dense_gate", "dense_up"),
    ("dense_down",),
    ("expert_gate", "expert_up"),
    ("expert_down",),
    ("shared_gate", "shared_up"),
    ("shared_down",),
    ("head",),
)


Change = Callable[[str, Weight], Weight]


class Overruled(MutableMapping[str, Weight]):
    """Parameters in float32, of which those named in `held` are to be held in the format there.
    `change` sees each, by name, when it is taken."""

    def __init__(
        self, params: MutableMapping[str, Weight], held: Mapping[str, Format], change: Change
    ) -> None:
        self._params, self._held, self._change = params, held, change

    def held_format(self, name: str) -> Format:
        """What `ParamSource` asks for."""
        return self._held.get(name, BFLOAT16)

    def __getitem__(self, name: str) -> Weight:
        return self._change(name, self._params[name])

    def __setitem__(self, name: str, value: Weight) -> None:
        self._params[name] = value

    def __delitem__(self, name: str) -> None:
        del self._params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


def with_formats(
    plan: DeploymentPlan, formats: Mapping[str, Format], change: Change = lambda _, value: value
) -> RankModel:
    """The model on the CPU kernels, with matrices in the format of their role, or in bfloat16.
    `change` sees each parameter's role and value."""
    cpu = torch.device("cpu")
    rows = parameter_table(plan.model)
    params = load_parameters(
        open_checkpoint(Path(plan.model_path)),
        Shard(),
        dtype=torch.float32,
        device=cpu,
        dequantize=True,
        mtp=False,
    )
    ops = CpuBackend()
    roles = {row.name: row.role for row in rows}
    held = {name: formats[role] for name, role in roles.items() if role in formats}
    model = build_model(
        plan.model,
        Overruled(params, held, lambda name, value: change(roles[name], value)),
        ops=ops,
        comm=SingleRank(),
        shard=Shard(),
        dtype=torch.bfloat16,
    )
    return RankModel(model=model, ops=ops, kv_cache=allocate_cache(plan, cpu))


class RoleMeter:
    """Compares choices of formats by role with float32."""

    def __init__(self, config: EngineConfig, material: Material) -> None:
        self._documents = material.documents
        self._reference = LoadedModel(plan_of(config, "float32")).predict(self._documents)
        self._plan = plan_of(config, "bf16")
        start_threads(self._plan, self._plan.threads)
        self._rows = parameter_table(self._plan.model)

    def measure(
        self, formats: Mapping[str, Format], change: Change = lambda _, value: value
    ) -> dict[str, Any]:
        """The divergence of a choice; see `with_formats`."""
        found = predict(self._plan, with_formats(self._plan, formats, change), self._documents)
        return asdict(summarize(compare(self._reference, found)))

    def num_bytes(self, formats: Mapping[str, Format]) -> int:
        """Bytes of the main model's matrices that a choice names."""
        rows = [row for row in self._rows if row.role in formats]
        layers = self._plan.model.num_layers
        main = [row for row in rows if row.layer is None or row.layer < layers]
        return sum(formats[row.role].num_bytes(row.shape) for row in main)


def by_role(meter: RoleMeter) -> list[dict[str, Any]]:
    """One row for each role: its bytes and the divergence in each format."""
    rows = []
    for roles in ROLES:
        row: dict[str, Any] = {"roles": roles}
        for name, format in (("int4", int4_group(128)), ("int8", INT8_CHANNEL)):
            chosen = dict.fromkeys(roles, format)
            row[name], row[f"{name}_bytes"] = meter.measure(chosen), meter.num_bytes(chosen)
        print(roles, {name: row[name]["mean_kl"] for name in ("int4", "int8")}, file=sys.stderr)
        rows.append(row)
    return rows


def by_rule(meter: RoleMeter) -> list[dict[str, Any]]:
    """All matrices in int4, but more and more roles in int8."""
    kept: tuple[str, ...] = ()
    rows = []
    for more in ((), ("kv_b", "head"), ("q_a", "kv_a"), ("o",), ("q_b",)):
        kept += more
        chosen = {role: int4_group(128) for roles in ROLES for role in roles}
        chosen |= dict.fromkeys(kept, INT8_CHANNEL)
        found = {"int8": kept, "bytes": meter.num_bytes(chosen), "int4": meter.measure(chosen)}
        print(kept, found["int4"]["mean_kl"], file=sys.stderr)
        rows.append(found)
    return rows


def by_group(config: EngineConfig, material: Material) -> list[FormatQuality]:
    """Checkpoints that `fathom quantize` writes, run as they are stored."""
    rows = []
    source = open_checkpoint(embedded_path())
    for target, group in (("int8", 128), ("int4", 128), ("int4", 64), ("int4", 32)):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "model"
            quantize_checkpoint(source, out, target=cast(Any, target), group_size=group)
            ours = replace(config, model=str(out))
            found = evaluate(ours, ["stored"], material, reference_config=config)[-1]
        label = "int8 (quantize)" if target == "int8" else f"int4-{group} (quantize)"
        rows.append(replace(found, format=label))
        print(label, found.divergence.mean_kl, file=sys.stderr)
    return rows


def measure(num_tokens: int) -> dict[str, Any]:
    """Everything, with where and how it was measured."""
    config = EngineConfig()
    rows, text = read_rows(embedded_heldout()), load_text(config)
    questions = tuple(row for row in rows if isinstance(row, Question))
    material = Material(text, documents(rows, text, num_tokens), questions)
    bare = replace(material, questions=())
    formats = evaluate(config, FORMATS, material, say=lambda what: print(what, file=sys.stderr))
    (_, cached) = evaluate(replace(config, kv_cache_dtype="fp8"), ["bf16"], material)
    meter = RoleMeter(config, bare)
    return {
        "machine": machine(),
        "commit": commit(),
        "command": f"python -m bench.quality --num-tokens {num_tokens}",
        "formats": [asdict(row) for row in (*formats, replace(cached, format="kv_fp8"))],
        "checkpoints": [asdict(row) for row in by_group(config, bare)],
        "roles": by_role(meter),
        "rules": by_rule(meter),
    }


def machine() -> dict[str, str]:
    """What this runs on."""
    return {"cpu": _processor(), "isa": library.isa(), "python": platform.python_version()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit() -> str:
    """The commit, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--page", action="store_true", help="write docs/quality.md, measure nothing"
    )
    asked = parser.parse_args()
    results = measure(asked.num_tokens)
    asked.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
