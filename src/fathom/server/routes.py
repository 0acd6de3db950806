"""The route table: every path that the server has, and whether it is open without a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from fathom.server import page, probes
from fathom.server.anthropic import messages
from fathom.server.anthropic.wire import ANTHROPIC
from fathom.server.deepseek import balance
from fathom.server.envelope import OPENAI, Form
from fathom.server.exchange import Exchange
from fathom.server.ollama import catalogue
from fathom.server.ollama import chat as ollama_chat
from fathom.server.ollama.wire import OLLAMA
from fathom.server.openai import chat, completions, models, tokens
from fathom.server.responses import create, kept
from fathom.server.responses.wire import RESPONSES
from fathom.server.sglang import generate as sglang
from fathom.server.state import ServerState

Handler = Callable[[ServerState, Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One row. `is_open`: needs no key. `form`: how its dialect writes errors and streams."""

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    form: Form = OPENAI


def _deepseek() -> Iterator[RouteSpec]:
    """DeepSeek's API is OpenAI's under two base URLs without /v1; /beta has what is new there."""
    for base in ("", "/beta"):
        yield RouteSpec("POST", f"{base}/chat/completions", chat.chat_completions)
        yield RouteSpec("POST", f"{base}/completions", completions.completions)
        yield RouteSpec("GET", f"{base}/models", models.list_models)
    yield RouteSpec("GET", "/user/balance", balance.user_balance)


def _anthropic() -> Iterator[RouteSpec]:
    """Anthropic's API, and the same under the base URL that DeepSeek has for its clients."""
    for base in ("", "/anthropic"):
        for path, handler in (("", messages.messages), ("/count_tokens", messages.count_tokens)):
            yield RouteSpec("POST", f"{base}/v1/messages{path}", handler, form=ANTHROPIC)


def _ollama() -> Iterator[RouteSpec]:
    """Ollama's API, as far as it is about one model that is loaded."""
    yield RouteSpec("POST", "/api/chat", ollama_chat.chat, form=OLLAMA)
    yield RouteSpec("POST", "/api/generate", ollama_chat.generate, form=OLLAMA)
    yield RouteSpec("POST", "/api/show", catalogue.show, form=OLLAMA)
    yield RouteSpec("GET", "/api/tags", catalogue.tags, form=OLLAMA)
    yield RouteSpec("GET", "/api/ps", catalogue.running, form=OLLAMA)
    yield RouteSpec("GET", "/api/version", probes.version, form=OLLAMA)


def _responses() -> Iterator[RouteSpec]:
    """OpenAI's newer API, with answers that are kept."""
    base = "/v1/responses"
    yield RouteSpec("POST", base, create.create, form=RESPONSES)
    yield RouteSpec("POST", f"{base}/input_tokens", create.input_tokens)
    yield RouteSpec("GET", f"{base}/{{response_id}}", kept.retrieve)
    yield RouteSpec("DELETE", f"{base}/{{response_id}}", kept.delete)
    yield RouteSpec("GET", f"{base}/{{response_id}}/input_items", kept.input_items)


ROUTES = (
    RouteSpec("POST", "/v1/chat/completions", chat.chat_completions),
    RouteSpec("POST", "/v1/completions", completions.completions),
    RouteSpec("GET", "/v1/models", models.list_models),
    RouteSpec("GET", "/v1/models/{model:path}", models.show_model),
    *_responses(),
    *_deepseek(),
    *_anthropic(),
    *_ollama(),
    RouteSpec("POST", "/generate", sglang.generate),
    RouteSpec("GET", "/get_model_info", sglang.model_info),
    RouteSpec("POST", "/flush_cache", sglang.flush_cache),
    RouteSpec("POST", "/tokenize", tokens.tokenize),
    RouteSpec("POST", "/detokenize", tokens.detokenize),
    RouteSpec("GET", "/metrics", probes.metrics),
    RouteSpec("GET", "/version", probes.version),
    RouteSpec("GET", "/livez", probes.livez, is_open=True),
    RouteSpec("GET", "/readyz", probes.readyz, is_open=True),
    RouteSpec("GET", "/health", probes.readyz, is_open=True),
    RouteSpec("GET", "/", page.chat_page, is_open=True),
)
