"""Runs `fathom eval` and compares what it prints, writes and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fathom import cli

SMALL = ["--kv-cache-memory-bytes", "64MiB", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def torch_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_one_format_of_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "quality.json"
    arguments = ["eval", "--formats", "fp8", "--num-tokens", "200", "--no-tasks", "--check"]
    assert cli.main([*arguments, *SMALL, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    reference, found = json.loads(output.read_text())["formats"]
    assert reference["format"] == "float32"
    assert reference["divergence"]["mean_kl"] == 0
    assert found["format"] == "fp8"
    assert found["divergence"]["num_positions"] == 200
    assert "| fp8 | cpu |" in printed


def test_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of Norway is Oslo. " * 4)
    arguments = ["eval", "--formats", "stored", "--text", str(text), "--json"]
    assert cli.main([*arguments, *SMALL]) == 0
    rows = json.loads(capsys.readouterr().out)["formats"]
    assert [row["format"] for row in rows] == ["float32", "stored"]
    assert rows[1]["divergence"]["num_positions"] > 20
    assert rows[1]["tasks"] == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--num-tokens", "0"], "--num-tokens"),
        (["--model", "somewhere"], "--text"),
        (["--check", "--text", "x"], "--check"),
        (["--text", "no-such-file"], "no-such-file"),
        (["--formats", "int9"], "int9"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *arguments]) == 2
    assert word in capsys.readouterr().err
