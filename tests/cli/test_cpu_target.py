"""`--gpu cpu` of plan and simulate: the CPUs that were measured, as the engine resolves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.cli import main
from fathom.commands import plan_emit, serve
from fathom.commands.plan import Answer, plan
from fathom.commands.plan_flags import parse
from fathom.commands.plan_text import told
from fathom.errors import ConfigError
from fathom.perf.calibration import Calibration, Law, joined, keep
from fathom.perf.resolve import resolve
from fathom.spec.hardware import Device, Machine
from fathom.spec.model import ModelSpec

GIB = 2**30
CPU = "EPYC 9654, avx512, 16 threads"
BFLOAT16 = Calibration(
    name=f"{CPU}, bfloat16",
    machine=CPU,
    source="test",
    date="2026-01-02",
    laws={
        "gemm/bfloat16": Law(compute=0.9),
        "experts/bfloat16": Law(unit_s=1e-6, compute=0.6),
        "decode/bfloat16": Law(bandwidth=0.7, compute=0.3),
        "prefill/bfloat16": Law(bandwidth=0.7, compute=0.3),
        "rows": Law(bandwidth=0.7),
    },
    peaks=dict.fromkeys(("bfloat16", "fp8_block", "int8", "int4", "vector"), 4e12),
    bytes_s=2e11,
    layer_s=2e-5,
    is_here=True,
    weights="bfloat16",
    threads=16,
    memory_bytes=64 * GIB,
)
INT8 = replace(
    BFLOAT16,
    name=f"{CPU}, int8",
    date="2026-01-01",
    weights="int8",
    laws={**BFLOAT16.laws, "gemm/int8": Law(bandwidth=0.9), "experts/int8": Law(bandwidth=0.8)},
    peaks={name: 2 * peak for name, peak in BFLOAT16.peaks.items()},
    bytes_s=1e11,
)
LITE = ("v2-lite", "--gpu", "cpu")


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where calibrations are kept."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "FATHOM_HARDWARE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "fathom"


def answer(*arguments: str) -> Answer:
    found = plan(parse(list(arguments)))
    assert isinstance(found, Answer)
    return found


def test_what_was_planned_is_what_runs(data: Path, tmp_path: Path) -> None:
    """The written file gives the engine on such CPUs the plan's bytes, pages and formats."""
    keep(BFLOAT16, data)
    for more in ((), ("--weights", "int8", "--kv", "fp8", "--context", "32k")):
        found = answer(*LITE, *more)
        path = tmp_path / "fathom.toml"
        assert len(plan_emit.emit(found, path)) == 1
        config, _, _ = serve.parse(["--config", str(path)])
        machine = Machine((Device("cpu", CPU, 64 * GIB, 64 * GIB),), 16, "avx512", "")
        assert isinstance(found.model.spec, ModelSpec)
        run, best = resolve(config, found.model.spec, machine, str(config.model)), found.best
        assert run.ops_backend == "cpu"
        assert run.threads == 16
        assert run.kv_dtype == best.kv
        assert run.quantization == best.precision.quantization
        assert run.max_model_len == best.context
        # More pages than its sequences can fill are not taken of a host's memory.
        assert run.kv_tokens <= best.kv_tokens
        kept = [line for line in best.ledger if line.part != "KV pages"]
        assert [line for line in run.ledger if line.part != "KV pages"] == kept


def test_what_was_measured_is_said_to_be(data: Path) -> None:
    keep(BFLOAT16, data)
    found = answer(*LITE)
    assert found.best.model is not None
    assert found.best.model.confidence == "measured on this machine"
    text = "\n".join(told(found))
    assert f"1 x {CPU}" in text
    assert "kernel buffers" in text
    inexact = next(one for one in found.candidates if one.precision.name == "int8")
    assert inexact.model is not None
    assert inexact.model.confidence == "roofline"


def test_calibrations_of_one_machine_are_joined(data: Path) -> None:
    """Each weights' law takes as long as in the calibration that measured it."""
    both = joined([INT8, BFLOAT16])
    for one, form in ((INT8, "int8"), (BFLOAT16, "bfloat16")):
        for kind in ("gemm", "experts"):
            own, law = one.law(kind, form), both.law(kind, form)
            assert law.bandwidth * both.bytes_s == pytest.approx(own.bandwidth * one.bytes_s)
            peaks = both.peaks[form], one.peaks[form]
            assert law.compute * peaks[0] == pytest.approx(own.compute * peaks[1])
    keep(INT8, data)
    keep(BFLOAT16, data)
    found = {one.precision.name: one.model for one in answer(*LITE).candidates if one.model}
    assert {found[name].confidence for name in ("bf16", "int8")} == {"measured on this machine"}


def test_a_larger_machine_is_one_of_the_catalogue(data: Path) -> None:
    """Their times are those that come with fathom, not the CPUs'."""
    keep(BFLOAT16, data)
    found = answer(*LITE, "--slo", "tpot=2ms", "--users", "8")
    assert found.verdict == "limited"
    changes = [
        dict(one.values)["machine"] for one in found.changes if "machine" in dict(one.values)
    ]
    for machine in changes:
        assert answer("v2-lite", "--gpu", machine, "--slo", "tpot=2ms", "--users", "8").verdict == (
            "yes"
        )
    assert answer("deepseek-v3", "--gpu", "cpu").verdict == "no"


def test_costs_have_the_energy_that_the_catalogue_knows(data: Path) -> None:
    keep(BFLOAT16, data)
    known = answer(*LITE, "--cost", "hour=0.5,kwh=0.1")
    assert known.costs is not None
    assert known.costs.watts == 360
    unknown = replace(BFLOAT16, machine="Cyrix 6x86", name="Cyrix", date="2026-02-01")
    keep(unknown, data)
    assert "Energy" not in "\n".join(told(answer(*LITE, "--cost", "hour=0.5", "--explain")))
    with pytest.raises(ConfigError, match="kwh"):
        answer(*LITE, "--cost", "kwh=0.1")


def test_they_are_simulated(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(BFLOAT16, data)
    load = ("--num-prompts", "1", "--input-len", "500", "--output-len", "33", "--json")
    assert main(["simulate", "v2-lite", "--gpu", "CPU", *load]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["about"]["Times"].startswith("measured on this machine")
    assert shown["about"]["Step"].startswith("at most 64 sequences and 512 tokens")
    planned = answer(*LITE, "--users", "1", "--isl", "500", "--osl", "33", "--context", "1k")
    assert planned.best.steady is not None
    assert shown["mean_tpot_ms"] == pytest.approx(planned.best.steady.tpot_s * 1000, rel=0.1)


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_what_is_wrong_is_named(
    command: str, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(*flags: str) -> str:
        assert main([command, "v2-lite", "--gpu", "cpu", *flags]) == 2
        return capsys.readouterr().err

    assert "fathom bench calibrate" in refused()
    of_gpus = tmp_path / "gpus.json"
    of_gpus.write_text(replace(BFLOAT16, threads=0).to_json())
    assert "not measured" in refused("--calibration", str(of_gpus))
    keep(BFLOAT16, data)
    assert "--nodes" in refused("--nodes", "2")
    assert "--network" in refused("--network", "ib-ndr")
    assert main([command, "deepseek-v3", "--gpu", "epyc-9654"]) == 2
    assert "--gpu cpu" in capsys.readouterr().err


def test_fp8_is_read_as_it_is_stored(data: Path) -> None:
    keep(BFLOAT16, data)
    with pytest.raises(ConfigError, match="weights in bf16"):
        answer("deepseek-v3", "--gpu", "cpu", "--weights", "bf16")
