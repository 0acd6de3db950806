"""Whether a checkpoint is whole: headers always, contents where asked. No torch."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom.errors import CheckpointError
from fathom.spec.params import ParamSpec
from fathom.weights.header import StoredTensor
from fathom.weights.index import CheckpointIndex, read_index
from fathom.weights.manifest import MANIFEST_NAME, digest_file, read_manifest

_CHUNK_BYTES = 2**20
# Highest bytes of float16 numbers that are finite: the exponent is not all ones.
_FINITE_HALF = bytes(byte for byte in range(256) if byte & 0x7C != 0x7C)
_FETCH_AGAIN = "fetch this file again"


@dataclass(frozen=True, slots=True)
class VerifyFinding:
    """One line of a verification: `absent` where there was nothing to check against."""

    check: str
    status: Literal["ok", "failed", "absent"]
    found: str = ""
    wanted: str = ""
    fix: str = ""


def verify_checkpoint(path: Path, *, deep: bool) -> list[VerifyFinding]:
    """Findings about the checkpoint in the directory `path`; never raises for what it finds.

    Always: config, index, headers and the parameter table, and the sizes that a manifest gives.
    `deep` reads every byte: digests of the manifest, NaN in FP8 weights, infinities or NaN in
    scales, groups of int4 out of order, and copies of embedding and head that differ from the
    originals.
    """
    findings: list[VerifyFinding] = []
    try:
        index = read_index(path)
    except CheckpointError as error:
        return [VerifyFinding("headers", "failed", str(error), error.wanted, error.fix)]
    findings.append(VerifyFinding("headers", "ok", f"{len(index.tensors)} tensors in place"))
    try:
        findings.extend(_against_manifest(path, deep=deep))
    except (CheckpointError, OSError) as error:
        findings.append(VerifyFinding("manifest", "failed", str(error)))
    if deep:
        findings.extend(_contents(index))
    return findings


def _against_manifest(path: Path, *, deep: bool) -> Iterator[VerifyFinding]:
    manifest = read_manifest(path)
    if manifest is None:
        yield VerifyFinding("manifest", "absent", wanted=MANIFEST_NAME)
        return
    bad = 0
    for name, expected in manifest.items():
        file = path / name
        check, wanted = f"manifest: {name}", f"{expected.num_bytes} bytes"
        if not file.is_file():
            found = "no such file"
        elif file.stat().st_size != expected.num_bytes:
            found = f"{file.stat().st_size} bytes"
        elif deep and (digest := digest_file(file)) != expected:
            found, wanted = f"sha256 {digest.sha256}", f"sha256 {expected.sha256}"
        else:
            continue
        bad += 1
        yield VerifyFinding(check, "failed", found, wanted, _FETCH_AGAIN)
    if not bad:
        what = "digests" if deep else "sizes"
        yield VerifyFinding("manifest", "ok", f"{what} of {len(manifest)} files agree")


def _contents(index: CheckpointIndex) -> Iterator[VerifyFinding]:
    """What is wrong with the values themselves."""
    bad = 0
    for param in index.table:
        stored = index.tensors.get(param.parts[0].name)
        if stored is None:
            continue
        problem = ""
        # The only NaNs of e4m3 are 0x7f and 0xff.
        if stored.dtype == "F8_E4M3" and any(b"\x7f" in c or b"\xff" in c for c in _bytes(stored)):
            problem = "NaN in the weights"
        elif param.scale_name is not None and not _is_finite(index.tensors[param.scale_name]):
            problem = "infinities or NaN in the scales"
        elif param.copy_of is not None and not _is_equal(stored, index.tensors[param.copy_of]):
            problem = f"differs from {param.copy_of}, which is used in its place"
        elif not _is_in_order(param, index):
            problem = "g_idx puts inputs into groups out of their order"
        if problem:
            bad += 1
            yield VerifyFinding(
                f"contents: {param.name} in {stored.file.name}", "failed", problem, "", _FETCH_AGAIN
            )
    if not bad:
        yield VerifyFinding("contents", "ok", "weights, scales and copies are sound")


def _bytes(stored: StoredTensor) -> Iterator[bytes]:
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        left = stored.stop - stored.start
        while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _is_finite(scales: StoredTensor) -> bool:
    """Whether no exponent is all ones. The highest byte alone decides for float16; for the wider
    exponents of the others it only says where to look closer."""
    width, mask = (4, 0x7F800000) if scales.dtype == "F32" else (2, 0x7F80)
    for chunk in _bytes(scales):
        highest = chunk[width - 1 :: width]
        if scales.dtype == "F16":
            if highest.translate(None, _FINITE_HALF):
                return False
        elif (b"\x7f" in highest or b"\xff" in highest) and any(
            one & mask == mask for one in _words(chunk, "I" if width == 4 else "H")
        ):
            return False
    return True


def _is_in_order(param: ParamSpec, index: CheckpointIndex) -> bool:
    """Whether the groups of inputs that are stored follow each other, as those of `param` do."""
    for part in param.parts:
        if part.role == "order" and part.name in index.tensors:
            assert param.format.block is not None
            found = [
                one for chunk in _bytes(index.tensors[part.name]) for one in _words(chunk, "I")
            ]
            if found != [place // param.format.block[1] for place in range(len(found))]:
                return False
    return True


def _words(chunk: bytes, code: Literal["H", "I"]) -> array[int]:
    values = array(code, chunk)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _is_equal(first: StoredTensor, second: StoredTensor) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and all(
        a == b for a, b in zip(_bytes(first), _bytes(second), strict=True)
    )
