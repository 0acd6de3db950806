"""`fathom proxy --upstream URL`: fathom's API in front of an engine that people keep."""

from __future__ import annotations

from fathom import log
from fathom.commands.flags import FlagParser, add_flags, from_flags
from fathom.config import EngineConfig, environment_api_key, environment_secret
from fathom.engine.upstream.config import UpstreamConfig
from fathom.errors import ConfigError
from fathom.server.config import ServerConfig

_DOC = """\
Serves OpenAI's, Anthropic's, Ollama's, SGLang's and DeepSeek's APIs in front of a server that
speaks OpenAI's.

With --tokenizer DIR prompts are rendered here and answers are read token by token, as fathom's own
are. Without it conversations are passed on, and only what the upstream left in the text is parted:
docs/decisions/0009-proxy.md says which guarantee each way gives."""


def main(arguments: list[str]) -> int:
    """Serve until a signal; gives the exit code."""
    upstream, server = parse(arguments)
    log.configure(server.log_level)
    key = _key(upstream.api_key_env)
    from fathom.engine.timing import Observer
    from fathom.engine.upstream.engine import UpstreamEngine
    from fathom.server.run import ManagedEngine, Plan, serve

    async def start(_: EngineConfig, observer: Observer) -> ManagedEngine:
        return await UpstreamEngine.start(upstream, key, observer)

    def on_ready(url: str, plan: Plan) -> None:
        way = "prompts as tokens" if upstream.tokenizer else "conversations as they come"
        print(
            f"fathom is ready at {url}\n"
            f"  upstream {plan.model_path} ({way})\n"
            f"  model    {plan.served_names[0]}\n"
            f"  context  {plan.max_model_len:,} tokens",
            flush=True,
        )

    return serve(EngineConfig(), server, on_ready, start)


def parse(arguments: list[str]) -> tuple[UpstreamConfig, ServerConfig]:
    """What was asked. Raises: ConfigError."""
    parser = FlagParser("proxy", _DOC)
    add_flags(parser, UpstreamConfig, "upstream")
    add_flags(parser, ServerConfig, "server")
    namespace = parser.parse(arguments)
    keys = tuple(getattr(namespace, "api_key", ()))
    from_environment = environment_api_key()
    if from_environment is not None:
        keys = (*keys, from_environment)
    upstream = from_flags(UpstreamConfig, namespace)
    server = from_flags(ServerConfig, namespace, api_key=keys)
    if server.chat_template is not None and upstream.tokenizer is None:
        raise ConfigError(
            "--chat-template needs --tokenizer", found="conversations that the upstream renders"
        )
    return upstream, server


def _key(name: str | None) -> str | None:
    """The upstream's key. Raises: ConfigError where the variable is not set."""
    if name is None:
        return None
    key = environment_secret(name)
    if key is None:
        raise ConfigError(f"--api-key-env {name}", found="no such variable, or an empty one")
    return key
