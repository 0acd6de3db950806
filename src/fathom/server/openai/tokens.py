"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from msgspec import to_builtins

from fathom.errors import RequestError
from fathom.server.exchange import Exchange
from fathom.server.job import Ask, tell
from fathom.server.openai.schema import DetokenizeRequest, TokenizeRequest, spellings
from fathom.server.state import ServerState
from fathom.server.thinking import one_meaning
from fathom.text.chat import encode_chat
from fathom.text.prompt import encode_prompt


async def tokenize(state: ServerState, exchange: Exchange) -> None:
    """The ids of a text or of a rendered conversation."""
    await tell(state, exchange, _tokenize)


async def detokenize(state: ServerState, exchange: Exchange) -> None:
    """The text of ids."""
    await tell(state, exchange, _detokenize)


def _tokenize(ask: Ask) -> dict[str, Any]:
    request, model = ask.read(TokenizeRequest), ask.model
    model.check_name(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("one of prompt and messages is needed", param="prompt")
    if request.prompt is not None:
        ids = encode_prompt(
            model.tokenizer, request.prompt, add_special_tokens=request.add_special_tokens
        )
    else:
        ask.config.check("max_messages", "messages", len(request.messages or ()))
        ask.config.check("max_tools", "tools", len(request.tools or ()))
        tools = to_builtins(request.tools)
        ask.leave_out_unknown(request.messages, tools)
        ids = encode_chat(
            model.tokenizer,
            model.template,
            request.messages,
            tools=tools,
            thinking=one_meaning(spellings(request.chat_template_kwargs)).mode(model.template),
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
    told: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": model.plan.max_model_len,
        "tokens": ids,
    }
    if request.return_token_strs:
        told["token_strs"] = [model.tokenizer.token_text(token_id) for token_id in ids]
    return told


def _detokenize(ask: Ask) -> dict[str, Any]:
    request, model = ask.read(DetokenizeRequest), ask.model
    model.check_name(request.model)
    model.tokenizer.check_ids(request.tokens, "tokens")
    text = model.tokenizer.decode(request.tokens, request.skip_special_tokens)
    return {"prompt": text}
