"""`fathom bench`: what to measure, and which of vLLM's and SGLang's names mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType

from fathom.errors import ConfigError

# What is measured: where its function is, and what it does.
BENCHES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "serve": ("bench_serve:main", "a server, over HTTP: latencies and throughput under load"),
        "offline": ("bench_offline:main", "the engine in this process: throughput, or latency"),
        "throughput": ("bench_offline:throughput", "as 'offline throughput'"),
        "calibrate": ("bench_calibrate:main", "this machine, for the cost model of plans"),
        "latency": ("bench_offline:latency", "as 'offline latency': one batch, again and again"),
    }
)
_ABSENT = MappingProxyType(
    {
        "sweep": "run 'fathom bench serve' in a loop, with --append-result",
        "startup": "the log of 'fathom serve' times its phases",
        "mm-processor": "fathom's models read text only",
    }
)


def main(arguments: list[str]) -> int:
    """Measure; gives the exit code. Raises: SystemExit after help, as the other commands do."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if arguments else ConfigError.exit_code)
    name = arguments[0]
    if name in _ABSENT:
        raise ConfigError(f"fathom bench {name} is not implemented yet", fix=_ABSENT[name])
    if name not in BENCHES:
        near = get_close_matches(name, BENCHES, n=1)
        raise ConfigError(
            f"there is no benchmark {name!r}",
            wanted=", ".join(BENCHES),
            fix=f"did you mean fathom bench {near[0]}?" if near else "fathom bench --help",
        )
    module, _, function = BENCHES[name][0].partition(":")
    code: int = getattr(import_module(f"fathom.commands.{module}"), function)(arguments[1:])
    return code


def usage() -> str:
    """What `fathom bench --help` prints."""
    rows = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in BENCHES.items())
    return (
        "usage: fathom bench WHAT [...]\n\n"
        f"{rows}\n\n'fathom bench WHAT --help' lists its flags, which carry vLLM's names."
    )
