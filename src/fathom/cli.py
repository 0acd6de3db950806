"""`fathom`: a table from subcommand to `module:function`. A subcommand loads what it needs only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from fathom import __version__
from fathom.errors import ConfigError, FathomError

# Subcommand: where its function is, and what it does.
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "plan": ("fathom.commands.plan:main", "say what a model needs, does and costs, and where"),
        "serve": ("fathom.commands.serve:main", "serve a model behind OpenAI's API"),
        "proxy": ("fathom.commands.proxy:main", "the same APIs in front of another engine"),
        "chat": ("fathom.commands.chat:main", "talk to a server in the terminal"),
        "run": ("fathom.commands.run:main", "answer one prompt or a JSONL file, without a server"),
        "eval": ("fathom.commands.eval:main", "measure what number formats cost in quality"),
        "quantize": ("fathom.commands.quantize:main", "write a checkpoint again in int8 or int4"),
        "simulate": ("fathom.commands.simulate:main", "what a deployment would do under a load"),
        "bench": ("fathom.commands.bench:main", "measure a server, or the engine"),
        "version": ("fathom.commands.version:main", "print the version"),
    }
)
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; gives the exit code. Errors go to stderr, each part on its own line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _dispatch(arguments)
    except FathomError as error:
        print(say(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough; the interpreter must not flush into it again.
        sys.stdout = None
        return 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else ConfigError.exit_code
    name = "version" if arguments[0] in ("-V", "--version") else arguments[0]
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command {name!r}",
            wanted=", ".join(COMMANDS),
            fix=_nearest(name) or "fathom --help",
        )
    module, _, function = COMMANDS[name][0].partition(":")
    code: int = getattr(import_module(module), function)(arguments[1:])
    return code


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    return f"did you mean fathom {near[0]}?" if near else ""


def usage() -> str:
    """What `fathom --help` prints."""
    rows = "\n".join(f"  {name:<9}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        f"fathom {__version__}: serves models of the DeepSeek-V3 architecture\n\n"
        f"usage: fathom COMMAND [...]\n\n{rows}\n\n'fathom COMMAND --help' lists its flags."
    )


def say(error: FathomError) -> str:
    """An error for a person: what, and under it what was found, wanted, and how to fix it."""
    lines = [f"fathom: {error.what}"]
    for label in ("found", "wanted", "fix"):
        text = getattr(error, label)
        if text:
            lines.append(f"  {label + ':':<8}{text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
