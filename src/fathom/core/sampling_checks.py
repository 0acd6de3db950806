"""The one place that says which sampling parameters are right, for the server and for `LLM`.

`SamplingParams` calls it when it is made, so that an instance is always valid and in normal form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.core.structured import as_structured_outputs
from fathom.errors import RequestError

# What is right at all; a server allows less: `server/limits.py`.
MAX_CHOICES = 1024
MAX_LOGPROBS = 1000
MAX_STOP_STRINGS = 256
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_ALLOWED_TOKEN_IDS = 2**18
MAX_BAD_SEQUENCES = 512
MAX_BAD_LENGTH = 64

_INT64 = (-(2**63), 2**63 - 1)
_MAX_COUNT = 2**31 - 1
_MAX_DIGITS = 10
# Field, least, most, whether None is a value.
_WHOLE: tuple[tuple[str, int, int, bool], ...] = (
    ("n", 1, MAX_CHOICES, False),
    ("top_k", 0, _MAX_COUNT, False),
    ("seed", *_INT64, True),
    ("max_tokens", 1, _MAX_COUNT, True),
    ("min_tokens", 0, _MAX_COUNT, False),
    ("logprobs", 0, MAX_LOGPROBS, True),
    ("prompt_logprobs", 0, MAX_LOGPROBS, True),
)
# Field, least, most, whether the least itself is allowed, in words.
_REAL: tuple[tuple[str, float, float, bool, str], ...] = (
    ("temperature", 0.0, math.inf, True, "a number of 0 or more"),
    ("top_p", 0.0, 1.0, False, "a number over 0, at most 1"),
    ("min_p", 0.0, 1.0, True, "a number from 0 to 1"),
    ("presence_penalty", -2.0, 2.0, True, "a number from -2 to 2"),
    ("frequency_penalty", -2.0, 2.0, True, "a number from -2 to 2"),
    ("repetition_penalty", 0.0, math.inf, False, "a number over 0"),
)
_FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "repetition_detection",
)


def normalize(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams in normal form, from what callers pass.

    One string or a list for `stop`, a list for `stop_token_ids`, -1 for `top_k` (all), whole
    numbers for real ones, None for the empty sequences and the empty bias.

    Raises: RequestError whose `param` is the field at fault.
    """
    result = dict(values)
    if result["top_k"] == -1:
        result["top_k"] = 0
    for name, least, most, may_be_none in _WHOLE:
        if not (may_be_none and result[name] is None):
            _whole(name, result[name], least, most)
    for name, low, high, includes_low, wanted in _REAL:
        result[name] = _real(name, result[name], low, high, includes_low, wanted)
    for name in _FLAGS:
        if not isinstance(result[name], bool):
            raise _wrong(name, result[name], "true or false")
    result["stop"] = _stop_strings(result["stop"])
    result["stop_token_ids"] = _token_ids(
        "stop_token_ids", result["stop_token_ids"], MAX_STOP_TOKEN_IDS
    )
    result["logit_bias"] = _logit_bias(result["logit_bias"])
    result["allowed_token_ids"] = _allowed_token_ids(result["allowed_token_ids"])
    result["bad_token_ids"] = _bad_token_ids(result["bad_token_ids"])
    result["structured_outputs"] = as_structured_outputs(result["structured_outputs"])
    if result["structured_outputs"] is not None and result["ignore_eos"]:
        raise _wrong("ignore_eos", True, "false: an answer with a form ends where the form does")
    limit = result["max_tokens"]
    if limit is not None and result["min_tokens"] > limit:
        raise _wrong("min_tokens", result["min_tokens"], f"at most max_tokens, {limit}")
    return result


def _wrong(name: str, found: object, wanted: str) -> RequestError:
    # Python itself refuses to write out whole numbers of more than 4,300 digits.
    is_huge = isinstance(found, int) and found.bit_length() > 1024
    text = "a number of more than 300 digits" if is_huge else repr(found)
    return RequestError(
        f"{name} is not valid",
        param=name,
        found=text if len(text) <= 80 else f"{text[:77]}...",
        wanted=wanted,
    )


def _whole(name: str, value: object, least: int, most: int) -> None:
    wanted = f"a whole number from {least} to {most}"
    if most == _MAX_COUNT:
        wanted = f"a whole number of {least} or more"
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(name, value, wanted)


def _real(
    name: str, value: object, low: float, high: float, includes_low: bool, wanted: str
) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, wanted)
    is_right = low < value <= high or (includes_low and value == low)
    if not is_right or math.isinf(value):
        raise _wrong(name, value, wanted)
    return float(value)


def _items(name: str, value: object, most: int) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _wrong(name, value, "a list")
    if len(value) > most:
        raise _wrong(name, f"{len(value)} of them", f"at most {most}")
    return value


def _stop_strings(value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else _items("stop", value, MAX_STOP_STRINGS)
    for item in items:
        if not isinstance(item, str) or not 0 < len(item) <= MAX_STOP_LENGTH:
            wanted = f"strings of 1 to {MAX_STOP_LENGTH} characters"
            raise _wrong("stop", item, wanted)
    return tuple(items)


def _token_ids(name: str, value: object, most: int) -> tuple[int, ...]:
    items = _items(name, value, most)
    for item in items:
        _whole(name, item, 0, _MAX_COUNT)
    return tuple(items)


def _allowed_token_ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    ids = _token_ids("allowed_token_ids", value, MAX_ALLOWED_TOKEN_IDS)
    if not ids:
        raise _wrong("allowed_token_ids", [], "at least one")
    return ids


def _bad_token_ids(value: object) -> tuple[tuple[int, ...], ...]:
    name = "bad_token_ids"
    sequences = [
        _token_ids(name, item, MAX_BAD_LENGTH) for item in _items(name, value, MAX_BAD_SEQUENCES)
    ]
    if not all(sequences):
        raise _wrong(name, [], "sequences of at least one token")
    return tuple(sequences)


def _logit_bias(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong("logit_bias", value, "a mapping from token ids to numbers")
    if len(value) > MAX_LOGIT_BIASES:
        raise _wrong("logit_bias", f"{len(value)} of them", f"at most {MAX_LOGIT_BIASES}")
    result = {}
    for key, bias in value.items():
        # JSON has no whole numbers for keys: a string of digits is one.
        is_digits = isinstance(key, str) and key.isdecimal() and len(key) <= _MAX_DIGITS
        token_id = int(key) if is_digits else key
        is_whole = isinstance(token_id, int) and not isinstance(token_id, bool)
        if not (is_whole and 0 <= token_id <= _MAX_COUNT):
            raise _wrong("logit_bias", key, "token ids as keys")
        result[token_id] = _real(
            "logit_bias", bias, -100.0, 100.0, True, "numbers from -100 to 100"
        )
    return result
