"""The route table: every path that the server has, and whether it is open without a key."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import json

from fathom.server import page, probes
from fathom.server.anthropic import messages
from fathom.server.anthropic import schema as anthropic
from fathom.server.anthropic.wire import ANTHROPIC
from fathom.server.deepseek import balance
from fathom.server.exchange import Exchange
from fathom.server.ollama import catalogue
from fathom.server.ollama import chat as ollama_chat
from fathom.server.ollama import schema as ollama
from fathom.server.ollama.wire import OLLAMA
from fathom.server.openai import chat, completions, models, tokens
from fathom.server.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from fathom.server.openapi import describe
from fathom.server.responses import create, kept
from fathom.server.responses import schema as responses
from fathom.server.responses.wire import RESPONSES
from fathom.server.route import RouteSpec
from fathom.server.sglang import generate as sglang
from fathom.server.sglang.schema import GenerateRequest as SglangRequest
from fathom.server.state import ServerState


def _deepseek() -> Iterator[RouteSpec]:
    """DeepSeek's API is OpenAI's under two base URLs without /v1; /beta has what is new there."""
    for base in ("", "/beta"):
        yield RouteSpec("POST", f"{base}/chat/completions", chat.chat_completions, body=ChatRequest)
        yield RouteSpec(
            "POST", f"{base}/completions", completions.completions, body=CompletionRequest
        )
        yield RouteSpec("GET", f"{base}/models", models.list_models)
    yield RouteSpec("GET", "/user/balance", balance.user_balance)


def _anthropic() -> Iterator[RouteSpec]:
    """Anthropic's API, and the same under the base URL that DeepSeek has for its clients."""
    for base in ("", "/anthropic"):
        for path, handler, body in (
            ("", messages.messages, anthropic.MessagesRequest),
            ("/count_tokens", messages.count_tokens, anthropic.CountRequest),
        ):
            yield RouteSpec("POST", f"{base}/v1/messages{path}", handler, form=ANTHROPIC, body=body)


def _ollama() -> Iterator[RouteSpec]:
    """Ollama's API, as far as it is about one model that is loaded."""
    yield RouteSpec("POST", "/api/chat", ollama_chat.chat, form=OLLAMA, body=ollama.ChatRequest)
    yield RouteSpec(
        "POST", "/api/generate", ollama_chat.generate, form=OLLAMA, body=ollama.GenerateRequest
    )
    yield RouteSpec("POST", "/api/show", catalogue.show, form=OLLAMA, body=ollama.ShowRequest)
    yield RouteSpec("GET", "/api/tags", catalogue.tags, form=OLLAMA)
    yield RouteSpec("GET", "/api/ps", catalogue.running, form=OLLAMA)
    yield RouteSpec("GET", "/api/version", probes.version, form=OLLAMA)


def _responses() -> Iterator[RouteSpec]:
    """OpenAI's newer API, with answers that are kept."""
    base = "/v1/responses"
    yield RouteSpec("POST", base, create.create, form=RESPONSES, body=responses.ResponsesRequest)
    yield RouteSpec(
        "POST", f"{base}/input_tokens", create.input_tokens, body=responses.CountRequest
    )
    yield RouteSpec("GET", f"{base}/{{response_id}}", kept.retrieve)
    yield RouteSpec("DELETE", f"{base}/{{response_id}}", kept.delete)
    yield RouteSpec(
        "GET", f"{base}/{{response_id}}/input_items", kept.input_items, query=responses.ItemsQuery
    )


async def _describe(state: ServerState, exchange: Exchange) -> None:
    """This description."""
    is_ready = state.phase in ("ready", "stalled")
    told = describe(
        ROUTES,
        served_names=state.require()[1].plan.served_names if is_ready else (),
        needs_key=bool(state.config.api_key),
        is_lenient=state.config.lenient,
    )
    await exchange.respond(200, json.encode(told))


ROUTES: tuple[RouteSpec, ...] = (
    RouteSpec("POST", "/v1/chat/completions", chat.chat_completions, body=ChatRequest),
    RouteSpec("POST", "/v1/completions", completions.completions, body=CompletionRequest),
    RouteSpec("GET", "/v1/models", models.list_models),
    RouteSpec("GET", "/v1/models/{model:path}", models.show_model),
    *_responses(),
    *_deepseek(),
    *_anthropic(),
    *_ollama(),
    RouteSpec("POST", "/generate", sglang.generate, body=SglangRequest),
    RouteSpec("GET", "/get_model_info", sglang.model_info),
    RouteSpec("POST", "/flush_cache", sglang.flush_cache, gives="text/plain"),
    RouteSpec("POST", "/tokenize", tokens.tokenize, body=TokenizeRequest),
    RouteSpec("POST", "/detokenize", tokens.detokenize, body=DetokenizeRequest),
    RouteSpec("GET", "/metrics", probes.metrics, gives="text/plain"),
    RouteSpec("GET", "/version", probes.version),
    RouteSpec("GET", "/openapi.json", _describe),
    RouteSpec("GET", "/livez", probes.livez, is_open=True),
    RouteSpec("GET", "/readyz", probes.readyz, is_open=True),
    RouteSpec("GET", "/health", probes.readyz, is_open=True),
    RouteSpec("GET", "/", page.chat_page, is_open=True, gives="text/html"),
)
