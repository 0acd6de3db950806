"""`fathom serve [MODEL]`: flags in, a running server out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from fathom import log
from fathom.commands.config_file import apply_file
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.commands.foreign import translate
from fathom.commands.foreign_flags import foreign_flags
from fathom.config import EngineConfig, environment_api_key
from fathom.errors import ConfigError
from fathom.server.config import ServerConfig

if TYPE_CHECKING:
    import argparse

    from fathom.spec.plan import DeploymentPlan

_DOC = "Serves a model behind OpenAI's API. Flags carry vLLM's names; SGLang's are understood too."

_SAID_ABOVE = ("model", "model_path", "served_names")


def main(arguments: list[str]) -> int:
    """Serve until a signal; gives the exit code."""
    engine, server, notes = parse(arguments)
    log.configure(server.log_level)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    from fathom.server.run import serve  # after the flags, so that --help does not wait for it

    def on_ready(url: str, plan: DeploymentPlan) -> None:
        print(banner(url, plan, needs_key=bool(server.api_key)), flush=True)

    return serve(engine, server, on_ready)


def parse(arguments: list[str]) -> tuple[EngineConfig, ServerConfig, list[str]]:
    """What was asked, and notes on flags that ask for what happens anyway. Raises: ConfigError."""
    foreign = foreign_flags("serve")
    own, notes = translate(arguments, foreign)
    parser = FlagParser("serve", _DOC)
    parser.know(name for entry in foreign for name in entry.names)
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="same as --model")
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, ServerConfig, "server")
    parser.add_argument("--config", metavar="FILE", help="TOML file with [engine] and [server]")
    namespace = parser.parse(own)
    set_model(namespace)
    if namespace.config is not None:
        apply_file(namespace, namespace.config, {"engine": EngineConfig, "server": ServerConfig})
    keys = tuple(getattr(namespace, "api_key", ()))
    from_environment = environment_api_key()
    if from_environment is not None:
        keys = (*keys, from_environment)
    engine = from_flags(EngineConfig, namespace)
    return engine, from_flags(ServerConfig, namespace, api_key=keys), notes


def set_model(namespace: argparse.Namespace) -> None:
    """One model from MODEL and --model. Raises: ConfigError where they differ."""
    positional = namespace.model_argument
    named = getattr(namespace, "model", None)
    if positional is None:
        return
    if named is not None and named != positional:
        raise ConfigError("MODEL and --model differ", found=f"{positional} and {named}")
    namespace.model = positional


def banner(url: str, plan: DeploymentPlan, *, needs_key: bool) -> str:
    """What is printed on ready: where, what, why, and a request that works as it stands."""
    name = plan.served_names[0]
    rows = [
        f"fathom is ready at {url}",
        f"  model    {name} ({plan.model_path})",
        f"  context  {plan.max_model_len:,} tokens; KV pool {plan.kv_tokens:,} tokens "
        f"({plan.num_pages:,} pages of {plan.page_size})",
    ]
    rows += [
        f"  {decision.field} = {decision.value}: {decision.reason}"
        for decision in plan.decisions
        if decision.source != "default" and decision.field not in _SAID_ABOVE
    ]
    body = {"model": name, "messages": [{"role": "user", "content": "What is fathom?"}]}
    key = " -H 'Authorization: Bearer '\"$FATHOM_API_KEY\"" if needs_key else ""
    hint = ["  with the key in FATHOM_API_KEY:"] if needs_key else []
    rows += [
        f"Chat in a browser: {url}/   in a terminal: fathom chat --url {url}",
        "",
        *hint,
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
        f"  -d {shell_quoted(json.dumps(body, ensure_ascii=False))}",
    ]
    return "\n".join(rows)


def shell_quoted(text: str) -> str:
    """`text` as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
