"""Plain completion prompts: text or token ids to the ids that the model gets; gaps to be filled."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.errors import RequestError
from fathom.text.tokenizer import Tokenizer

_FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    add_special_tokens: bool = True,
    param: str = "prompt",
) -> tuple[int, ...]:
    """Text gets the BOS that the checkpoint wants in front (unless told not to); ids are taken as
    they are, checked.

    Raises: RequestError for an empty prompt, an id outside the vocabulary, or lone surrogates.
    """
    tokenizer.require(param)
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if add_special_tokens and tokenizer.adds_bos and tokenizer.bos_id is not None:
            ids = (tokenizer.bos_id, *ids)
    else:
        for position, token_id in enumerate(prompt):
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise RequestError(
                    f"{param}[{position}] is not a token id",
                    param=param,
                    found=repr(token_id),
                    wanted="whole numbers",
                )
        ids = tuple(prompt)
        tokenizer.check_ids(ids, param)
    if not ids:
        raise RequestError(f"{param} is empty", param=param, wanted="at least one token")
    return ids


def can_infill(tokenizer: Tokenizer) -> bool:
    """Whether `encode_infill` works."""
    return all(name in tokenizer.special_ids for name in _FIM)


def encode_infill(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    suffix: str,
    *,
    add_special_tokens: bool = True,
) -> tuple[int, ...]:
    """What stands before a gap and after it, in the order that DeepSeek's models learnt: the model
    goes on with what belongs between.

    Raises: RequestError as `encode_prompt`, and where the tokenizer has no tokens for it.
    Source: the fill-in-the-middle examples of DeepSeek-Coder-V2's model card.
    """
    tokenizer.require("suffix")
    if not can_infill(tokenizer):
        raise RequestError(
            "this checkpoint cannot fill in the middle",
            param="suffix",
            code="unsupported_value",
            found=f"a tokenizer without {', '.join(_FIM)}",
        )
    begin, hole, end = (tokenizer.special_ids[name] for name in _FIM)
    before = () if prompt == "" else encode_prompt(tokenizer, prompt, add_special_tokens=False)
    after = tokenizer.encode(suffix)
    has_bos = add_special_tokens and tokenizer.adds_bos and tokenizer.bos_id is not None
    bos = (tokenizer.bos_id,) if has_bos and tokenizer.bos_id is not None else ()
    return (*bos, begin, *before, hole, *after, end)
