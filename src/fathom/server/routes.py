"""The route table: every path that the server has, and whether it is open without a key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fathom.server import page, probes
from fathom.server.anthropic import messages
from fathom.server.anthropic import schema as anthropic
from fathom.server.anthropic.wire import ANTHROPIC
from fathom.server.envelope import OPENAI, Form
from fathom.server.exchange import Exchange
from fathom.server.ollama import catalogue
from fathom.server.ollama import chat as ollama_chat
from fathom.server.ollama import schema as ollama
from fathom.server.ollama.wire import OLLAMA
from fathom.server.openai import chat, completions, models, tokens
from fathom.server.openai import schema as openai
from fathom.server.openapi import describe
from fathom.server.responses import create, kept
from fathom.server.responses import schema as responses
from fathom.server.responses.wire import RESPONSES
from fathom.server.route import RouteSpec
from fathom.server.sglang import generate as sglang
from fathom.server.sglang.schema import GenerateRequest as SglangRequest
from fathom.server.state import ServerState

_get, _post = partial(RouteSpec, "GET"), partial(RouteSpec, "POST")


def _openai(base: str) -> Iterator[RouteSpec]:
    """OpenAI's API, which is DeepSeek's too: under base URLs without /v1, /beta for what is new."""
    yield _post(f"{base}/chat/completions", chat.chat_completions, body=openai.ChatRequest)
    yield _post(f"{base}/completions", completions.completions, body=openai.CompletionRequest)
    yield _get(f"{base}/models", models.list_models)


def _anthropic(base: str) -> Iterator[RouteSpec]:
    """Anthropic's API; DeepSeek has a base URL for its clients."""
    path, form = f"{base}/v1/messages", ANTHROPIC
    yield _post(path, messages.messages, form=form, body=anthropic.MessagesRequest)
    yield _post(
        f"{path}/count_tokens", messages.count_tokens, form=form, body=anthropic.CountRequest
    )


def _ollama() -> Iterator[RouteSpec]:
    """Ollama's API, as far as it is about one model that is loaded."""
    yield _post("/api/chat", ollama_chat.chat, form=OLLAMA, body=ollama.ChatRequest)
    yield _post("/api/generate", ollama_chat.generate, form=OLLAMA, body=ollama.GenerateRequest)
    yield _post("/api/show", catalogue.show, form=OLLAMA, body=ollama.ShowRequest)
    yield _get("/api/tags", catalogue.tags, form=OLLAMA)
    yield _get("/api/ps", catalogue.running, form=OLLAMA)
    yield _get("/api/version", probes.version, form=OLLAMA)


def _responses() -> Iterator[RouteSpec]:
    """OpenAI's newer API, with answers that are kept."""
    base = "/v1/responses"
    yield _post(base, create.create, form=RESPONSES, body=responses.ResponsesRequest)
    yield _post(f"{base}/input_tokens", create.input_tokens, body=responses.CountRequest)
    yield _get(f"{base}/{{response_id}}", kept.retrieve)
    yield RouteSpec("DELETE", f"{base}/{{response_id}}", kept.delete)
    yield _get(f"{base}/{{response_id}}/input_items", kept.input_items, query=responses.ItemsQuery)


async def _describe(state: ServerState, exchange: Exchange) -> None:
    """This description."""
    is_ready = state.phase in ("ready", "stalled")
    told = describe(
        ROUTES,
        served_names=state.require()[1].plan.served_names if is_ready else (),
        needs_key=bool(state.config.api_key),
        is_lenient=state.config.lenient,
    )
    await exchange.give(told)


ROUTES: tuple[RouteSpec, ...] = (
    *_openai("/v1"),
    _get("/v1/models/{model:path}", models.show_model),
    *_responses(),
    *_openai(""),
    *_openai("/beta"),
    _get("/user/balance", probes.user_balance),
    *_anthropic(""),
    *_anthropic("/anthropic"),
    *_ollama(),
    _post("/generate", sglang.generate, body=SglangRequest),
    _get("/get_model_info", sglang.model_info),
    _post("/flush_cache", sglang.flush_cache, gives="text/plain"),
    _post("/tokenize", tokens.tokenize, body=openai.TokenizeRequest),
    _post("/detokenize", tokens.detokenize, body=openai.DetokenizeRequest),
    _get("/metrics", probes.metrics, gives="text/plain"),
    _get("/version", probes.version),
    _get("/openapi.json", _describe),
    _get("/livez", probes.livez, is_open=True),
    _get("/readyz", probes.readyz, is_open=True),
    _get("/health", probes.readyz, is_open=True),
    _get("/", page.chat_page, is_open=True, gives="text/html"),
)

_FORMS = {route.path: route.form for route in ROUTES}
# Under these, clients of one dialect alone look for what is not there.
_BASES = {"/api/": OLLAMA, "/v1/messages/": ANTHROPIC, "/anthropic/": ANTHROPIC}


def form_of(path: str) -> Form:
    """How errors are written at `path`, which need not be there."""
    bases = (form for base, form in _BASES.items() if path.startswith(base))
    return _FORMS.get(path) or next(bases, OPENAI)
