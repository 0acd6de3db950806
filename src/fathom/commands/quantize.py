"""`fathom quantize IN OUT`: a checkpoint with its matrices in int8 or int4."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from fathom import log
from fathom.commands.flags import FlagParser
from fathom.errors import ConfigError
from fathom.spec.formats import INT4_GROUPS
from fathom.units import format_bytes

_DOC = """\
Writes the checkpoint in the directory IN again into OUT, with its matrices quantised: int8 with one
scale for each row (w8a8_int8), or int4 in groups with scales and zero points (AWQ's layout).
Rounding is to nearest; nothing is calibrated on text.

  fathom quantize DeepSeek-V2-Lite DeepSeek-V2-Lite-int4 --format int4 --group-size 64"""


def main(arguments: list[str]) -> int:
    """Quantise; one line for each layer."""
    parser = _parser()
    namespace = parser.parse(arguments)
    group_size = namespace.group_size
    if namespace.format == "int8" and group_size is not None:
        raise ConfigError("--group-size goes with --format int4", found=str(group_size))
    if group_size is not None and group_size not in INT4_GROUPS:
        raise ConfigError(
            "--group-size", found=str(group_size), wanted=" or ".join(map(str, INT4_GROUPS))
        )
    log.configure("warning")
    # Torch takes a second to load: not before the arguments are known to be right.
    from fathom.weights.open import open_checkpoint
    from fathom.weights.quantize import quantize_checkpoint

    start = monotonic()
    out = Path(namespace.output)
    quantize_checkpoint(
        open_checkpoint(Path(namespace.input)),
        out,
        target=namespace.format,
        group_size=group_size or max(INT4_GROUPS),
        say=lambda what: print(f"{monotonic() - start:7.1f} s  {what}", flush=True),
    )
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{monotonic() - start:7.1f} s  {format_bytes(size)} of weights in {out}")
    return 0


def _parser() -> FlagParser:
    parser = FlagParser("quantize", _DOC)
    parser.add_argument("input", metavar="IN", help="the directory of a checkpoint")
    parser.add_argument("output", metavar="OUT", help="a directory that is empty or to be made")
    parser.add_argument("--format", required=True, choices=("int8", "int4"), help="of matrices")
    parser.add_argument(
        "--group-size", type=int, help="inputs that share a scale: 32, 64 or 128 (default), int4"
    )
    return parser
