"""What a request to /generate may say."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

# SGLang's, where a request names none.
MAX_NEW_TOKENS = 128
_Start = Annotated[int, Meta(ge=-1)]


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
    """The body of POST /generate: text or token ids, one prompt or several. What is a list beside
    them is of each prompt."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: SamplingFields | list[SamplingFields] = SamplingFields()
    rid: str | list[str] | None = None
    stream: bool = False
    return_logprob: bool | list[bool] = False
    logprob_start_len: _Start | list[_Start] = -1
    top_logprobs_num: int | list[int] = 0
    return_text_in_logprobs: bool = False
    extra_key: str | list[str] | None = None
    priority: int | None = None
