"""Findings of a verification against damage done on purpose: flipped bits, NaN, stale copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.errors import CheckpointError
from fathom.weights.index import read_index
from fathom.weights.manifest import MANIFEST_NAME, read_manifest, write_manifest
from fathom.weights.synthetic import write_checkpoint
from fathom.weights.verify import VerifyFinding, verify_checkpoint
from tests.weights.tiny_checkpoints import TINY_FP8


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(TINY_FP8, tmp_path)
    return tmp_path


def _overwrite(path: Path, name: str, content: bytes) -> None:
    stored = read_index(path).tensors[name]
    with stored.file.open("r+b") as stream:
        stream.seek(stored.start)
        stream.write(content)


def _failed(findings: list[VerifyFinding]) -> list[VerifyFinding]:
    return [finding for finding in findings if finding.status == "failed"]


def test_a_sound_checkpoint(checkpoint: Path) -> None:
    statuses = {one.check: one.status for one in verify_checkpoint(checkpoint, deep=True)}
    assert statuses == {"headers": "ok", "manifest": "absent", "contents": "ok"}
    write_manifest(checkpoint)
    assert set(read_manifest(checkpoint) or ()) == {"config.json", "model.safetensors"}
    statuses = {one.check: one.status for one in verify_checkpoint(checkpoint, deep=True)}
    assert statuses == {"headers": "ok", "manifest": "ok", "contents": "ok"}


def test_headers_that_fail_end_the_verification(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (finding,) = verify_checkpoint(checkpoint, deep=True)
    assert (finding.check, finding.status) == ("headers", "failed")
    assert "truncated" in finding.found
    assert finding.fix


def test_a_flipped_bit_is_found_by_the_digest_only(checkpoint: Path) -> None:
    write_manifest(checkpoint)
    name = "model.layers.0.mlp.up_proj.weight"
    _overwrite(checkpoint, name, b"\x01")
    assert not _failed(verify_checkpoint(checkpoint, deep=False))
    (finding,) = _failed(verify_checkpoint(checkpoint, deep=True))
    assert "sha256" in finding.found
    assert finding.check == "manifest: model.safetensors"


def test_files_that_the_manifest_names_are_there_and_whole(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "merges.txt").write_text("a b")
    write_manifest(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "merges.txt").write_text("a b c")
    found = {one.check: one.found for one in _failed(verify_checkpoint(checkpoint, deep=False))}
    assert found == {"manifest: tokenizer.json": "no such file", "manifest: merges.txt": "5 bytes"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.layers.1.mlp.experts.2.up_proj.weight", b"\x7f", "NaN in the weights"),
        ("model.layers.1.mlp.experts.2.up_proj.weight", b"\xff", "NaN in the weights"),
        (
            "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv",
            b"\x00\x00\x80\x7f",
            "infinities or NaN in the scales",
        ),
        ("lm_head.weight", b"\x00\x00\x00\x00", "differs from lm_head.weight"),
    ],
)
def test_contents(checkpoint: Path, name: str, content: bytes, said: str) -> None:
    _overwrite(checkpoint, name, content)
    assert not _failed(verify_checkpoint(checkpoint, deep=False))
    (finding,) = _failed(verify_checkpoint(checkpoint, deep=True))
    assert said in finding.found


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"files": []}',
        '{"files": {"a": {"bytes": 1, "sha256": "xyz"}}}',
        '{"files": {"../a": {"bytes": 1, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"bytes": true, "sha256": "' + "0" * 64 + '"}}}',
    ],
)
def test_a_wrong_manifest_is_a_finding(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        read_manifest(checkpoint)
    (finding,) = _failed(verify_checkpoint(checkpoint, deep=False))
    assert finding.check == "manifest"
