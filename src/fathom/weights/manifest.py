"""Sizes and SHA-256 digests of a checkpoint's files, kept beside them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import CheckpointError
from fathom.weights.index import read_json

MANIFEST_NAME = "fathom-manifest.json"

_CHUNK_BYTES = 2**20
_DIGEST = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file should be: its size, and SHA-256 in lower-case hexadecimal."""

    num_bytes: int
    sha256: str


def digest_file(file: Path) -> FileDigest:
    """Size and digest of a file as it is. Raises: OSError."""
    digest, num_bytes = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return FileDigest(num_bytes, digest.hexdigest())


def write_manifest(path: Path) -> None:
    """Record every file of the checkpoint directory `path`, the manifest itself apart."""
    digests = {
        file.name: digest_file(file)
        for file in sorted(path.iterdir())
        if file.is_file() and file.name != MANIFEST_NAME
    }
    files = {name: {"bytes": one.num_bytes, "sha256": one.sha256} for name, one in digests.items()}
    text = json.dumps({"files": files}, indent=2) + "\n"
    (path / MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(path: Path) -> Mapping[str, FileDigest] | None:
    """What the manifest in the directory `path` says, None where there is none.

    Raises: CheckpointError where it is not a manifest.
    """
    if not (path / MANIFEST_NAME).exists():
        return None
    files = read_json(path / MANIFEST_NAME).get("files")
    if not isinstance(files, dict):
        raise _wrong("files", files)
    return {name: _digest(name, entry) for name, entry in files.items()}


def _digest(name: str, entry: object) -> FileDigest:
    if not isinstance(entry, dict) or Path(name).name != name:
        raise _wrong(name, entry)
    num_bytes, sha256 = entry.get("bytes"), entry.get("sha256")
    if type(num_bytes) is not int or not isinstance(sha256, str) or not _DIGEST.match(sha256):
        raise _wrong(name, entry)
    return FileDigest(num_bytes, sha256)


def _wrong(name: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"{MANIFEST_NAME}: {name}",
        found=repr(found)[:200],
        wanted="names of files with their bytes and sha256",
        fix="delete the manifest, or fetch the checkpoint again",
    )
