"""What a request may ask of this vocabulary: checked once, for the server and for `LLM` alike.

What is wrong whatever the model, `SamplingParams` refuses itself; what cannot fit, the core.
"""

from __future__ import annotations

from itertools import chain

from fathom.core.types import SamplingParams
from fathom.text.tokenizer import Tokenizer


def check_request(
    prompt_ids: tuple[int, ...], sampling: SamplingParams, tokenizer: Tokenizer
) -> None:
    """Refuse token ids outside the vocabulary.

    Raises: RequestError whose `param` names the field.
    """
    ids_of = {
        "prompt": prompt_ids,
        "logit_bias": tuple(sampling.logit_bias),
        "stop_token_ids": sampling.stop_token_ids,
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "bad_token_ids": tuple(chain(*sampling.bad_token_ids)),
    }
    for param, ids in ids_of.items():
        # Prompts are long, and this runs in the server's loop: look closer only where it is wrong.
        if ids and (min(ids) < 0 or max(ids) >= tokenizer.vocab_size):
            tokenizer.check_ids(ids, param)
