"""Fields that clients of OpenAI, vLLM and SGLang send and that fathom knows but does not honour.

A field is refused by name, unless its value asks for what happens anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fathom.server.decode import Refusals, Refused

_NO_TEMPLATE = Refused(
    "a template is code, and none is taken from a request",
    fix="choose the template when the server starts: --chat-template",
)
_NO_MEDIA = Refused("the models read and write text only")
_NO_STORE = Refused("nothing is stored on the server")
_NO_LORA = Refused("adapters are not implemented yet")
_NO_TRANSFER = Refused("moving KV between engines is not implemented yet")
_NO_BEAM = Refused("beam search is not implemented yet", fix="use n with a temperature")
_ALWAYS_SPLIT = "reasoning is always given apart from the content"
_DEAD_FUNCTIONS = Refused("OpenAI replaced it in 2023", fix="use tools and tool_choice")

_COMMON: dict[str, Refused] = {
    **{
        f"guided_{name}": Refused("vLLM renamed it", fix=f"use structured_outputs: {{{name}: ...}}")
        for name in ("json", "regex", "choice", "grammar", "json_object", "whitespace_pattern")
    },
    "guided_decoding_backend": Refused("there is one grammar engine", fix="leave it out"),
    "stop_regex": Refused("stopping at a pattern is not implemented yet", fix="use stop"),
    "no_stop_trim": Refused("vLLM's name is used here", (False,), "use include_stop_str_in_output"),
    "spaces_between_special_tokens": Refused(
        "tokens are joined as the tokenizer joins them", (True,)
    ),
    "logprob_token_ids": Refused("logprobs of chosen tokens are not implemented yet", ([],)),
    "return_prompt_text": Refused("the prompt is not sent back", (False,), "use return_token_ids"),
    "stream_interval": Refused("every step's tokens are sent at once", (1,)),
    "extra_key": Refused("vLLM's name is used here", fix="use cache_salt"),
    "rid": Refused("vLLM's name is used here", fix="use request_id"),
    "session_id": Refused("sessions are not implemented yet"),
    "session_params": Refused("sessions are not implemented yet"),
    "custom_logit_processor": Refused("no code is taken from a request"),
    "custom_params": Refused("there are no custom processors"),
    "vllm_xargs": Refused("there are no custom processors"),
    "kv_transfer_params": _NO_TRANSFER,
    "bootstrap_host": _NO_TRANSFER,
    "bootstrap_port": _NO_TRANSFER,
    "bootstrap_room": _NO_TRANSFER,
    "lora_path": _NO_LORA,
    "watermark": Refused("watermarks are not implemented", (False,)),
    "use_beam_search": Refused(_NO_BEAM.why, (False,), _NO_BEAM.fix),
    "beam_width": _NO_BEAM,
    "length_penalty": Refused("it belongs to beam search", (1, 1.0)),
    "early_stopping": Refused("it belongs to beam search", (False,)),
    "best_of": Refused("OpenAI dropped it", (1,), "use n and choose yourself"),
    "return_hidden_states": Refused("hidden states are not given out", (False,)),
    "input_ids": Refused("a chat is sent as messages", fix="use /v1/completions with token ids"),
    "prompt_embeds": Refused("no tensor is taken from a request"),
    "metadata": _NO_STORE,
    "store": Refused(_NO_STORE.why, (False,)),
    "service_tier": Refused("there is one tier", ("auto", "default")),
    "prompt_cache_key": Refused(
        "equal prefixes are always shared", fix="use cache_salt to part tenants"
    ),
    "prompt_cache_retention": Refused("pages are kept until room is needed"),
}

CHAT: Mapping[str, Refused] = MappingProxyType(
    _COMMON
    | {
        "chat_template": _NO_TEMPLATE,
        "documents": Refused(
            "the templates know no documents", ([],), "put their text in a message"
        ),
        "prompt": Refused("it belongs to /v1/completions", fix="use messages"),
        "suffix": Refused("it belongs to /v1/completions", ("",)),
        "add_special_tokens": Refused("the template places them", (False,)),
        "functions": _DEAD_FUNCTIONS,
        "function_call": Refused(_DEAD_FUNCTIONS.why, ("auto", "none"), _DEAD_FUNCTIONS.fix),
        "modalities": Refused(_NO_MEDIA.why, (["text"],)),
        "audio": _NO_MEDIA,
        "mm_processor_kwargs": _NO_MEDIA,
        "media_io_kwargs": _NO_MEDIA,
        "prediction": Refused("predicted output is not implemented yet"),
        "web_search_options": Refused("the server reaches no network"),
        "verbosity": Refused("the models have no such setting", ("medium",)),
        "separate_reasoning": Refused(_ALWAYS_SPLIT, (True,)),
        "stream_reasoning": Refused("reasoning streams as it comes", (True,)),
        "reasoning": Refused("it belongs to /v1/responses", fix="use reasoning_effort"),
    }
)

COMPLETION: Mapping[str, Refused] = MappingProxyType(
    _COMMON
    | {
        "messages": Refused("it belongs to /v1/chat/completions", fix="use prompt"),
        "max_completion_tokens": Refused(
            "it belongs to /v1/chat/completions", fix="use max_tokens"
        ),
    }
)

# Values of honoured fields that are known but not honoured: path without indices -> value -> why.
VALUES: Mapping[str, Mapping[object, Refused]] = MappingProxyType(
    {
        "thinking.type": {
            "adaptive": Refused("the models cannot decide on it", fix="use enabled or disabled")
        },
    }
)

# Fields of inner objects, by path without indices.
INNER: Mapping[str, Mapping[str, Refused]] = MappingProxyType(
    {
        "stream_options": {
            "include_obfuscation": Refused("chunks are not padded", (False,)),
        },
        "response_format": {
            "schema": Refused("its place is elsewhere", fix="use json_schema: {schema: ...}"),
            "format": Refused("tags are given as structures and triggers"),
        },
        "structured_outputs": {
            "disable_fallback": Refused("there is no other engine", (True, False)),
            "disable_additional_properties": Refused(
                "the schema says what is allowed", (False,), "set additionalProperties in it"
            ),
        },
        "chat_template_kwargs": {"reasoning_effort": Refused("it is a field of the request")},
    }
)

OF_CHAT = Refusals(CHAT, INNER, VALUES)
OF_COMPLETION = Refusals(COMPLETION, INNER, VALUES)
