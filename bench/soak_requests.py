"""Draws malformed requests of every kind, as bytes, for `bench/soak.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

HI = [{"role": "user", "content": "?"}]
# Path -> a good body that is answered quickly, and a place for a schema in it.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 2},
    "/v1/completions": {"prompt": "?", "max_tokens": 2},
    "/v1/messages": {"messages": HI, "max_tokens": 2},
    "/v1/responses": {"input": "?", "max_output_tokens": 2},
    "/api/chat": {"model": "", "messages": HI, "options": {"num_predict": 2}},
    "/api/generate": {"model": "", "prompt": "?", "options": {"num_predict": 2}},
    "/generate": {"text": "?", "sampling_params": {"max_new_tokens": 2}},
    "/tokenize": {"prompt": "?"},
    "/detokenize": {"tokens": [5]},
    "/v1/messages/count_tokens": {"messages": HI},
}
NAMES = (
    *(
        "model",
        "messages",
        "prompt",
        "input",
        "text",
        "tools",
        "tool_choice",
        "stop",
        "n",
        "stream",
    ),
    *(
        "temperature",
        "top_p",
        "top_k",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "seed",
        "thinking",
    ),
    *("response_format", "structured_outputs", "regex", "ebnf", "format", "options", "system"),
    *("sampling_params", "bad_words", "allowed_token_ids", "stop_token_ids", "metadata", "include"),
    *("truncate_prompt_tokens", "previous_response_id", "output_config", "input_ids", "zzz", ""),
)
KEYWORDS = (
    *("type", "properties", "required", "items", "enum", "const", "pattern", "format", "anyOf"),
    *("allOf", "$ref", "minLength", "maximum", "not", "patternProperties", "$defs", "oneOf", "a"),
)
ATOMS = (
    None,
    True,
    "string",
    "#",
    "#/$defs/a",
    -1,
    1e300,
    "object",
    "a{9}",
    "[",
    0,
    "é😀\ud7ff",
    "",
)
JSON = "content-type: application/json\r\n"
MANY = 5000
# More than there may be of something, as JSON, which takes longer to write than to send.
TOO_MANY = {
    name: json.dumps(value)
    for name, value in {
        "stop": ["x"] * MANY,
        "messages": HI * MANY,
        "input": HI * MANY,
        "prompt": ["x"] * MANY,
        "regex": "x" * MANY * 200,
        "text": ["x"] * MANY,
        "tools": [{}] * MANY,
    }.items()
}
# HTTP that is none, or too much of it.
HEADS = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 150 + b"\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 60_000 + b"\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
)


def scrap(pick: Random, names: tuple[str, ...], depth: int = 0) -> Any:
    """Any JSON value."""
    kind = pick.randrange(9 if depth < 3 else 5)
    if kind < 5:
        return pick.choice([*ATOMS, pick.randrange(-(2**70), 2**70), pick.random()])
    if kind == 5:
        return [scrap(pick, names, depth + 1) for _ in range(pick.randrange(4))]
    return {pick.choice(names): scrap(pick, names, depth + 1) for _ in range(pick.randrange(4))}


def post(path: str, body: bytes, head: str = JSON) -> bytes:
    """A request's bytes."""
    start = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: {len(body)}\r\n\r\n"
    return start.encode() + body


@dataclass(frozen=True, slots=True)
class Requests:
    """Draws requests. `model` is a served name, which Ollama's clients must say."""

    pick: Random
    model: str

    def good(self) -> bytes:
        """A request that is answered with 200."""
        return self._of(*self._good())

    def _good(self) -> tuple[str, dict[str, Any]]:
        path = self.pick.choice(list(GOOD))
        body = GOOD[path]
        return path, {**body, "model": self.model} if "model" in body else dict(body)

    def _of(self, path: str, body: object) -> bytes:
        return post(path, json.dumps(body).encode())

    def damaged_json(self) -> bytes:
        """A good body, cut, with noise in it."""
        path, body = self._good()
        text = json.dumps(body).encode()
        cut = self.pick.randrange(len(text) + 1)
        noise = self.pick.randbytes(self.pick.randrange(9))
        return post(path, text[:cut] + noise + text[cut + self.pick.randrange(6) :])

    def no_json(self) -> bytes:
        """Bytes, deep nesting, wrong media types."""
        path = self.pick.choice(list(GOOD))
        body = self.pick.choice(
            [b"", b"null", b"[1]", b"[" * 5000, b'{"a":' * 5000, self.pick.randbytes(200)]
        )
        return post(path, body, self.pick.choice([JSON, "content-type: text/plain\r\n", ""]))

    def wrong_value(self) -> bytes:
        """Any value in known fields."""
        path, body = self._good()
        for _ in range(self.pick.randrange(1, 4)):
            body[self.pick.choice(NAMES)] = scrap(self.pick, NAMES)
        return self._of(path, body)

    def unknown_name(self) -> bytes:
        """A name that nobody knows, another each time."""
        path, body = self._good()
        return self._of(path, {**body, self.pick.randbytes(6).hex(): scrap(self.pick, NAMES)})

    def over_limit(self) -> bytes:
        """More than there may be of something."""
        path, body = self._good()
        over = 10 ** self.pick.randrange(6, 10)
        if self.pick.random() < 0.2:
            head = f"{JSON}content-length: {over * 10_000}\r\n"
            return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode()
        more: dict[str, Any] = self.pick.choice(
            [{"n": over}, {"top_logprobs": over, "logprobs": True}, {"max_tokens": -over},
             {"logit_bias": {str(over): 1}}, {"tokens": [over]},
             *({name: "@"} for name in TOO_MANY)]
        )  # fmt: skip
        text = json.dumps({**body, **more}).replace('"@"', TOO_MANY.get(next(iter(more)), ""))
        return post(path, text.encode())

    def wrong_form(self) -> bytes:
        """Schemas and grammars that are none, in the places that dialects have for them."""
        schema, pick = scrap(self.pick, KEYWORDS), self.pick
        text = "".join(
            pick.choice('ab()[]{}|*+?\\.^$0123,:=" \n') for _ in range(pick.randrange(30))
        )
        formed = {"type": "json_schema", "schema": schema, "name": "x"}
        path, more = pick.choice(
            [("/v1/chat/completions", {"response_format": {
                "type": "json_schema", "json_schema": {"schema": schema}}}),
             ("/v1/chat/completions", {"structured_outputs": {"json": schema}}),
             ("/v1/chat/completions", {"tool_choice": "required", "tools": [
                 {"type": "function", "function": {
                     "name": "f", "strict": True, "parameters": schema}}]}),
             ("/v1/completions", {"regex": text}), ("/v1/completions", {"ebnf": text}),
             ("/v1/messages", {"output_config": {"format": formed}}),
             ("/v1/responses", {"text": {"format": formed}}),
             ("/api/chat", {"format": schema}),
             ("/generate", {"sampling_params": {"max_new_tokens": 2, "regex": text}})]
        )  # fmt: skip
        body = {**GOOD[path], **more}
        return self._of(path, {**body, "model": self.model} if "model" in body else body)

    def no_http(self) -> bytes:
        """Requests that are none, and those of no route."""
        noise = self.pick.randbytes(40)
        method = self.pick.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
        path = self.pick.choice(
            [*GOOD, "/", "/v1//x", "/%ff", "/v1/responses/x", "/" + noise.hex()]
        )
        return self.pick.choice(
            [*HEADS, noise + b"\r\n\r\n",
             f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(),
             f"{method} {path} HTTP/1.1\r\nhost: example.org\r\n\r\n".encode(),
             post("/tokenize", b"zz\r\n{}\r\n", f"{JSON}transfer-encoding: chunked\r\n")]
        )  # fmt: skip

    def left(self) -> bytes:
        """Half of a request; its client leaves."""
        whole = self.good()
        return whole[: self.pick.randrange(1, len(whole))]

    def left_stream(self) -> bytes:
        """A stream that its client leaves when it has begun."""
        return self._of("/v1/completions", {"prompt": "?", "max_tokens": 50, "stream": True})


MALFORMED: tuple[Callable[[Requests], bytes], ...] = (
    *(Requests.damaged_json, Requests.no_json, Requests.wrong_value, Requests.unknown_name),
    *(Requests.over_limit, Requests.wrong_form, Requests.no_http),
)
LEAVING = (Requests.left, Requests.left_stream)
