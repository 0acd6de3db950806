"""What a request to /generate may say, and what is refused of it."""

from __future__ import annotations

from msgspec import Struct

from fathom.server.decode import Refusals, Refused

# SGLang's, where a request names none.
MAX_NEW_TOKENS = 128


class SamplingFields(Struct, frozen=True):
    """`sampling_params`."""

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    no_stop_trim: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /generate: text or token ids, one prompt or several."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: SamplingFields = SamplingFields()
    rid: str | None = None
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    return_text_in_logprobs: bool = False
    extra_key: str | None = None
    priority: int | None = None


_NO_MEDIA = Refused("the models read text only", ([],))
_NO_CODE = Refused("no code is taken from a request")
_NO_SESSIONS = Refused("sessions are not implemented yet")

REFUSALS = Refusals(
    top={
        "input_embeds": Refused("no tensor is taken from a request"),
        "image_data": _NO_MEDIA,
        "audio_data": _NO_MEDIA,
        "video_data": _NO_MEDIA,
        "modalities": _NO_MEDIA,
        "lora_path": Refused("adapters are not implemented yet"),
        "session_params": _NO_SESSIONS,
        "session_id": _NO_SESSIONS,
        "custom_logit_processor": _NO_CODE,
        "return_hidden_states": Refused("hidden states are not given out", (False,)),
        "token_ids_logprob": Refused("logprobs of chosen tokens are not implemented yet"),
        "log_metrics": Refused("metrics count every request", (True,)),
    },
    inner={
        "sampling_params": {
            "stop_regex": Refused("stopping at a pattern is not implemented yet", fix="use stop"),
            "spaces_between_special_tokens": Refused(
                "tokens are joined as the tokenizer joins them", (True,)
            ),
            "custom_params": _NO_CODE,
            "stream_interval": Refused("every step's tokens are sent at once", (1,)),
        }
    },
)
