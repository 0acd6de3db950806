"""The served points that the cost model is fitted to or compared with, and those left out, with the
reason. The split is by configuration: SGLang's points of 1024 tokens in and 1024 out on H200 are
fitted; all others, other lengths, systems, layouts, engines and published numbers, only compared.
The page that is made says what was changed after such points were seen.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from fathom.spec.parallel import Layout

DATA = Path(__file__).parent / "data"
GPUS = {
    "h100_sxm": "h100-sxm-80",
    "h200_sxm": "h200-sxm-141",
    "b200_sxm": "b200-sxm-180",
    "b300_sxm": "b300-sxm-288",
    "gb200": "gb200-186",
    "gb300": "gb300-288",
}
FITTED = ("h200_sxm", 1024, 1024)
# A run this much faster than another of the same engine, machine, layout and load had drafts.
DRAFTS_BELOW = 0.85
# Its client draws lengths evenly from 80 to 100 % of what is stated; ten requests for each user.
MEAN_SHARE, REQUESTS_EACH = 0.9, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement. Lengths are means. `ttft_ms` None: not to be compared. `workers`: of decode,
    where it is disaggregated. `excluded`: the reason, if it is left out."""

    id: str
    system: str
    engine: str
    version: str
    layout: Layout
    isl: int
    osl: int
    concurrency: int
    tpot_ms: float
    ttft_ms: float | None
    share: float = MEAN_SHARE
    requests_each: float = REQUESTS_EACH
    workers: int = 1
    is_decode_only: bool = False
    excluded: str = ""

    @property
    def is_fitted(self) -> bool:
        """Whether constants come from it."""
        return (self.system, self.isl, self.osl) == FITTED and not self.is_decode_only

    @property
    def total_per_s(self) -> float | None:
        """Tokens in and out per second, by Little's law of what was measured."""
        if self.ttft_ms is None or self.is_decode_only:
            return None
        out = self.osl * self.share
        seconds = (self.ttft_ms + out * self.tpot_ms) / 1000
        return self.concurrency * (self.isl + self.osl) * self.share / seconds


def points() -> list[Point]:
    """Every row of silicon_deepseek_fp8.csv, once, in a stable order."""
    with (DATA / "silicon_deepseek_fp8.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    read = [_point(row) for row in rows if row["mode"] == "agg"]
    read += [_decode_point(row) for row in rows if row["mode"] == "disagg"]
    unique = {_identity(point): point for point in read}
    found = sorted(unique.values(), key=lambda point: point.id)
    fast = _with_drafts(found)
    return [_judged(point, fast) for point in found]


def _identity(point: Point) -> tuple[object, ...]:
    where = (point.system, point.engine, point.version, point.layout)
    return (*where, point.isl, point.osl, point.concurrency, point.tpot_ms, point.is_decode_only)


def _point(row: dict[str, str]) -> Point:
    ranks, dp = int(row["tp_size"] or 1), int(row["attention_dp_size"] or 1)
    layout = Layout(tp=ranks, dp=dp, ep=int(row["moe_ep_size"] or 1), pp=int(row["pp_size"] or 1))
    return _made(row, layout, float(row["ttft_ms"]), 1, is_decode_only=False)


def _decode_point(row: dict[str, str]) -> Point:
    def size(name: str) -> int:
        return int(row[f"decode_{name}"] or 1)

    layout = Layout(tp=size("tp_size"), dp=size("attention_dp_size"), ep=size("moe_ep_size"))
    workers = int(row["decode_num_workers"] or 0)
    return _made(row, layout, None, workers, is_decode_only=True)


def _made(
    row: dict[str, str],
    layout: Layout,
    ttft_ms: float | None,
    workers: int,
    *,
    is_decode_only: bool,
) -> Point:
    return Point(
        id=row["id"],
        system=row["system"],
        engine=row["backend"],
        version=row["backend_version"],
        layout=layout,
        isl=int(row["isl"] or 0),
        osl=int(row["osl"] or 0),
        concurrency=int(row["concurrency"] or 0),
        tpot_ms=float(row["tpot_ms"]),
        ttft_ms=ttft_ms,
        workers=workers,
        is_decode_only=is_decode_only,
    )


def _configuration(point: Point) -> str:
    """The run that a point belongs to: what its id ends with; all of an engine and layout where
    that is a row's number."""
    ending = point.id.rpartition("_")[2]
    of_run = ending if ending.startswith("cfg") else str(point.layout)
    return f"{point.system} {of_run} {point.engine} {point.version}"


def _with_drafts(found: Iterable[Point]) -> set[str]:
    """Configurations of which points are far faster than others with all else alike.

    Compared with the slowest, and by the median over a configuration: one odd point decides
    nothing. The version of the engine is not compared, because other versions' runs are what shows
    that a run had drafts.
    """
    alike: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in found:
        key = (point.system, point.engine, point.layout, point.isl, point.osl)
        alike[(*key, point.concurrency, point.workers, point.is_decode_only)].append(point)
    shares: dict[str, list[float]] = defaultdict(list)
    for same in alike.values():
        slowest = max(point.tpot_ms for point in same)
        if len(same) > 1:
            for point in same:
                shares[_configuration(point)].append(point.tpot_ms / slowest)
    return {name for name, seen in shares.items() if median(seen) < DRAFTS_BELOW}


def _judged(point: Point, with_drafts: set[str]) -> Point:
    reason = ""
    if point.concurrency == 0 or point.isl == 0:
        reason = "no concurrency or length"
    elif point.is_decode_only and point.workers == 0:
        reason = "disaggregated, and the numbers of workers are not in the file"
    elif _configuration(point) in with_drafts:
        reason = "drafts that the label does not say: far faster than the same without"
    elif point.system == "b300_sxm":
        reason = "slower than the same engine and layout on B200, a slower GPU: kernels for the "
        reason += "older one, or none"
    elif point.system in ("gb200", "gb300"):
        reason = "labels of layouts that do not multiply to the GPUs of the system"
    elif point.layout.world_size > 8 and point.system != "h100_sxm":
        reason = "layout misread: more ranks than the GPUs of the system"
    return replace(point, excluded=reason)
