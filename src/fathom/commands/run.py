"""`fathom run [MODEL]`: one prompt, or a file of requests, without a server.

Requests go through the server's own application, in this process and without a socket: an answer
is the same, field by field, as the one that a client would get.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom import log
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.foreign import translate
from fathom.commands.foreign_flags import foreign_flags
from fathom.commands.serve import set_model
from fathom.config import EngineConfig
from fathom.errors import ConfigError

if TYPE_CHECKING:
    from fathom.commands.in_process import InProcess

_DOC = """\
Answers one prompt, or a JSONL file of requests in OpenAI's batch format, without a server.

  fathom run -p "What is 27 + 58?"
  fathom run -i requests.jsonl -o answers.jsonl"""
EXIT_SOME_FAILED = 1


def main(arguments: list[str]) -> int:
    """Answer, and exit with 0 where everything was answered."""
    own, notes = translate(arguments, foreign_flags("serve"))
    namespace = _parser().parse(own)
    set_model(namespace)
    _check(namespace)
    log.configure("warning")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    config = from_flags(EngineConfig, namespace)
    with asyncio.Runner() as runner:
        return runner.run(_run(config, namespace))


def _parser() -> FlagParser:
    parser = FlagParser("run", _DOC)
    parser.know(name for entry in foreign_flags("serve") for name in entry.names)
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="same as --model")
    group = parser.add_argument_group("what to answer")
    group.add_argument("-p", "--prompt", help="a question; - reads it from stdin")
    group.add_argument("-i", "--input-file", help="requests, one JSON object a line; - is stdin")
    group.add_argument("-o", "--output-file", help="answers, in the same order; - is stdout")
    group.add_argument("--system", help="system message, with -p")
    group.add_argument("--think", action="store_true", help="reason first, with -p")
    group.add_argument("--temperature", type=float, help="0 is greedy, with -p")
    group.add_argument("--max-tokens", type=int, help="longest answer, with -p")
    add_flags(parser, EngineConfig, "engine")
    return parser


def _check(namespace: Namespace) -> None:
    has_prompt, has_file = namespace.prompt is not None, namespace.input_file is not None
    if has_prompt == has_file:
        raise ConfigError(
            "one of -p and -i is needed",
            found="both" if has_prompt else "neither",
            fix='fathom run -p "..." or fathom run -i in.jsonl -o out.jsonl',
        )
    if has_file != (namespace.output_file is not None):
        raise ConfigError("-i and -o go together", fix="-o - writes to stdout")
    for name in ("system", "temperature", "max_tokens"):
        if has_file and getattr(namespace, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} goes with -p", fix="put it into the requests of the file")
    if has_file and namespace.think:
        raise ConfigError("--think goes with -p", fix="put it into the requests of the file")
    if has_file and namespace.input_file != "-" and not Path(namespace.input_file).exists():
        raise ConfigError(f"-i {namespace.input_file}", found="no such file")  # before the load


async def _run(config: EngineConfig, namespace: Namespace) -> int:
    from fathom.commands.in_process import in_process

    async with in_process(config) as server:
        if namespace.prompt is not None:
            await _one_shot(server, namespace)
            return 0
        from fathom.commands.batch import run_batch

        num_failed = await run_batch(server, namespace.input_file, namespace.output_file)
        return EXIT_SOME_FAILED if num_failed else 0


async def _one_shot(server: InProcess, namespace: Namespace) -> None:
    from fathom.commands.terminal import AnswerWriter

    question = sys.stdin.read() if namespace.prompt == "-" else namespace.prompt
    system = [{"role": "system", "content": namespace.system}] if namespace.system else []
    body: dict[str, Any] = {"messages": [*system, {"role": "user", "content": question}]}
    for name in ("temperature", "max_tokens"):
        if getattr(namespace, name) is not None:
            body[name] = getattr(namespace, name)
    if namespace.think:
        body["thinking"] = {"type": "enabled"}
    writer = AnswerWriter(sys.stdout)
    try:
        async with aclosing(server.stream("/v1/chat/completions", body)) as events:
            async for event in events:
                writer.event(event)
    finally:
        writer.end()
