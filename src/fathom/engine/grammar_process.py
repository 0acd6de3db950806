"""The process that checks grammars: `python -m fathom.engine.grammar_process DIRECTORY BYTES`.

It reads requests from its standard input and answers on its standard output, one at a time, until
the input ends. Whoever started it kills it where an answer is late.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from fathom.engine.child import die_with_parent
from fathom.engine.grammars import EXIT_NO_MEMORY, LENGTH, Checked
from fathom.engine.messages import pack_error
from fathom.errors import FathomError
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine
from fathom.text.tokenizer import Tokenizer


def main(directory: str, max_more_bytes: int) -> int:
    """Answer until the input ends, or memory does; gives the exit code."""
    die_with_parent()
    engine = GrammarEngine(Tokenizer.load(Path(directory)))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limit = _address_space_bytes() + max_more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_STACK, _less_stack())
    _send(sink, Checked())
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        try:
            body = source.read(LENGTH.unpack(head)[0])
            told = Checked(engine.check(msgspec.msgpack.decode(body, type=Asked)))
        except FathomError as error:
            told = Checked(error=pack_error(error))
        except MemoryError:
            return EXIT_NO_MEMORY
        _send(sink, told)
    return 0


def _send(sink: BinaryIO, message: Checked) -> None:
    body = msgspec.msgpack.encode(message)
    sink.write(LENGTH.pack(len(body)) + body)
    sink.flush()


def _less_stack() -> tuple[int, int]:
    """Three quarters of what a thread has in the engine's process, where the same grammar is
    compiled: that one must not overflow where this one did not."""
    now, most = resource.getrlimit(resource.RLIMIT_STACK)
    thread = 2 << 20 if now == resource.RLIM_INFINITY else now  # what libraries make of no limit
    return thread * 3 // 4, most


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
