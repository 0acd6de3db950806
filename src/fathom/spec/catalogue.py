"""The hardware that can be bought: GPUs, host CPUs and links by name, and a user's changes.

The figures are in `tables/`; `spec/catalogue_rows.py` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import product
from typing import Protocol, TypeVar

from fathom.errors import ConfigError
from fathom.spec.catalogue_rows import ROW_TYPES, merged, read_table, read_tables
from fathom.spec.hardware import Cluster, Cpu, Gpu, Link

# The largest server that is sold, where NVLink does not join more.
_SERVER_GPUS = 8
_MOST_GPUS = 16_384  # more are taken for a slip, and take minutes to divide
_FORMS = ("sxm", "pcie", "nvl")
_NOISE = re.compile(
    r"\b(?:nvidia|geforce|amd|instinct|tesla|huawei|intel|generation|blackwell|server edition|"
    r"workstation edition|hbm\d?e?|ac)\b|\((?:r|tm)\)|(?<=\d)\s*g(?:i?b)?\b|[^a-z0-9]"
)


class _Row(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...


_R = TypeVar("_R", bound=_Row)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every GPU, CPU and link that is known, in the order of the tables."""

    gpus: tuple[Gpu, ...]
    cpus: tuple[Cpu, ...]
    links: tuple[Link, ...]

    def changed(self, text: str, where: str) -> Catalogue:
        """This catalogue with the changes of a TOML document; `where` names it in errors.

        `[[gpu]]`, `[[cpu]]` and `[[link]]` tables have the columns of the tables. One whose `id` is
        known changes that row; one with `like` is a new row that differs from another in the
        columns given; any other gives every column. What is changed counts as not verified, and its
        source is the document unless it names one.

        Raises: ConfigError that names the table and the column at fault.
        """
        tables = read_tables(text, ROW_TYPES, where)
        known = zip(ROW_TYPES, (self.gpus, self.cpus, self.links), strict=True)
        changed = Catalogue(*(merged(kind, rows, tables[kind], where) for kind, rows in known))
        for gpu in changed.gpus:
            _find("link", gpu.network, changed.links)
        return changed


@cache
def builtin_catalogue() -> Catalogue:
    """The catalogue that comes with fathom."""
    return Catalogue(read_table("gpu"), read_table("cpu"), read_table("link"))


def find_gpu(
    name: str, catalogue: Catalogue | None = None, *, memory_bytes: int | None = None
) -> Gpu:
    """The GPU of a name such as `H20-96`, `A100 PCIe 80GB`, `RTX 4090` or a driver's own.

    A name without a form means the SXM one where there is one, and never an aftermarket part where
    the maker sells another. `memory_bytes`, as a driver reports it, tells sizes of one name apart.

    Raises: ConfigError with the nearest names, or with the sizes where the name has several.
    """
    rows = (catalogue or builtin_catalogue()).gpus
    found = [gpu for gpu in rows if _spelled(name) in _spellings(gpu)]
    if memory_bytes is not None:
        found = [one for one in found if abs(one.memory_bytes / memory_bytes - 1) < 0.03]
    tests: tuple[Callable[[Gpu], bool], ...] = (
        lambda gpu: _spelled(name) == _spelled(gpu.id),
        lambda gpu: gpu.market != "aftermarket",
        lambda gpu: any(one.endswith(" sxm") for one in gpu.names),
    )
    for is_preferred in tests:
        found = [gpu for gpu in found if is_preferred(gpu)] or found
    if len(found) > 1:
        raise ConfigError(
            "--gpu",
            found=f"{name!r}, which comes in several sizes",
            wanted=" or ".join(f"{one.id} ({one.name})" for one in found),
        )
    if not found and (cpu := find_cpu(name, catalogue)) is not None:
        raise ConfigError(
            "--gpu",
            found=f"{name[:80]!r}, the CPU {cpu.name}",
            wanted="a GPU: how fast a CPU's kernels are is known only where they were measured",
            fix="fathom bench calibrate on that host, and --gpu cpu there",
        )
    return found[0] if found else _unknown("gpu", name, rows)


def find_cpu(name: str, catalogue: Catalogue | None = None) -> Cpu | None:
    """The CPU whose name `name` contains, such as the model name that the kernel reports; None
    where there is none."""
    rows, spelled = (catalogue or builtin_catalogue()).cpus, _spelled(name)
    found = [(len(key), row) for row in rows for key in map(_spelled, row.names) if key in spelled]
    return max(found, key=lambda one: one[0])[1] if found else None


def find_link(name: str, catalogue: Catalogue | None = None) -> Link:
    """The link of a name such as `ib-ndr` or `pcie5`.

    Raises: ConfigError with the nearest names.
    """
    return _find("link", name, (catalogue or builtin_catalogue()).links)


def parse_cluster(
    text: str,
    nodes: int | None = None,
    *,
    network: str | None = None,
    catalogue: Catalogue | None = None,
) -> Cluster:
    """The cluster of `8xH20-96`: with `nodes`, the GPUs of each node; without, of all nodes.

    More GPUs than a server holds are divided over as few equal nodes as hold them. `network` is the
    link of each GPU between nodes; the one that servers of this GPU usually have where not given.

    Raises: ConfigError for counts that no server has, and for unknown names.
    """
    match = re.fullmatch(r"\s*(?:([+-]?\d+)\s*[x×*]\s*)?(.*?)\s*", text, re.DOTALL | re.IGNORECASE)
    assert match is not None
    count, gpu = int(match[1] or 1), find_gpu(match[2], catalogue)
    wanted = f"at least one GPU, at most {_MOST_GPUS}: --gpu 8xH20-96 --nodes 2"
    if min(count, 1 if nodes is None else nodes) < 1 or count * (nodes or 1) > _MOST_GPUS:
        raise ConfigError("--gpu", found=f"{text!r}, nodes {nodes}", wanted=wanted)
    most = max(_SERVER_GPUS, gpu.nvlink_gpus)
    if nodes is None:
        nodes = next(n for n in range(-(-count // most), count + 1) if count % n == 0)
        count //= nodes
    elif count > most:
        raise ConfigError(
            "--gpu",
            found=f"{count} GPUs in each of {nodes} nodes; a node of {gpu.name} has at most {most}",
            wanted="the GPUs of one node, with --nodes for how many",
        )
    link = find_link(network or gpu.network, catalogue)
    return Cluster(gpu=gpu, gpus_per_node=count, nodes=nodes, network_bytes_s=link.bytes_s)


def _find(kind: str, name: str, rows: tuple[_R, ...]) -> _R:
    for row in rows:
        if _spelled(name) in {_spelled(row.id), _spelled(row.name), *map(_spelled, row.names)}:
            return row
    return _unknown(kind, name, rows)


def _unknown(kind: str, name: str, rows: Iterable[_R]) -> _R:
    keys = {}
    for row in rows:
        spelled = _spellings(row) if isinstance(row, Gpu) else map(_spelled, (row.id, *row.names))
        keys.update(dict.fromkeys(spelled, row.id))
    near = [keys[key] for key in get_close_matches(_spelled(name), keys, 6, 0.5)]
    wanted = f"one of {', '.join(dict.fromkeys(near or keys.values()))}"
    raise ConfigError(
        "--network" if kind == "link" else f"--{kind}",
        found=f"{name[:80]!r}, which the catalogue does not have",
        wanted=wanted + (" (the nearest)" if near else ""),
        fix=f"a name of the catalogue, or a [[{kind}]] table in a hardware file of your own",
    )


def _spelled(text: str) -> str:
    """A name without makers, units, spaces and marks; `SXM5` is `sxm`."""
    return _NOISE.sub("", re.sub(r"\bsxm\d\b", "sxm", text.lower()))


@cache
def _spellings(gpu: Gpu) -> frozenset[str]:
    """What a GPU is called: each name with and without its form and its size, in either order."""
    spelled = {_spelled(gpu.id), _spelled(gpu.name)}
    size = re.search(r"-(\d+)(?:-mod)?$", gpu.id)
    for name in gpu.names:
        base, _, form = name.rpartition(" ")
        if form not in _FORMS:
            base, form = name, ""
        for one, other in product(("", form), ("", size[1] if size else "")):
            spelled |= {_spelled(base) + one + other, _spelled(base) + other + one}
    return frozenset(spelled)
