"""The server's description of itself in OpenAPI 3.1, made from the route table and the structs by
which bodies are read: what is not in them is not in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from fathom import __version__
from fathom.server.anthropic import schema as anthropic
from fathom.server.anthropic.translate import KINDS
from fathom.server.openai import schema as openai
from fathom.server.responses import schema as responses
from fathom.server.route import RouteSpec
from fathom.server.sglang import schema as sglang
from fathom.text import messages

Json = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_TEXT: Json = {"type": "string"}
# Whose lists of objects are read one by one, each by the struct that its type names.
_READ_BY_TYPE: Mapping[tuple[type[Struct], str], Mapping[str, type[Struct]]] = {
    (anthropic.CountRequest, "system"): KINDS["system"],
    (anthropic.MessagesRequest, "system"): KINDS["system"],
    (anthropic.Message, "content"): KINDS["user"] | KINDS["assistant"],
    (anthropic.ToolResultBlock, "content"): KINDS["system"],
    (responses.CountRequest, "input"): responses.ITEMS,
    (responses.ResponsesRequest, "input"): responses.ITEMS,
}
_WITH_CONVERSATIONS = (openai.ChatRequest, openai.TokenizeRequest)
# What handlers check that no type says.
_BOUNDS: Mapping[tuple[type[Struct], str], Json] = {
    (openai.ChatRequest, "messages"): {"minItems": 1},
    (openai.TokenizeRequest, "messages"): {"minItems": 1},
    (openai.CompletionRequest, "prompt"): {"minItems": 1, "minLength": 1},
    (anthropic.CountRequest, "messages"): {"minItems": 1},
    (anthropic.MessagesRequest, "messages"): {"minItems": 1},
    (anthropic.MessagesRequest, "max_tokens"): {"minimum": 1},
    (sglang.GenerateRequest, "input_ids"): {"minItems": 1},
}
_KEYS: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(
    routes: Iterable[RouteSpec],
    *,
    served_names: tuple[str, ...] = (),
    needs_key: bool = False,
    is_lenient: bool = False,
) -> Json:
    """The document. `served_names`: what `model` may be; any text where they are not known yet."""
    routes = tuple(routes)
    kinds = {route.form.error_kind for route in routes}
    kinds |= {route.body for route in routes if route.body is not None}
    kinds |= {kind for by_type in _READ_BY_TYPE.values() for kind in by_type.values()}
    schemas = _schemas(kinds, served_names, is_lenient)
    paths: dict[str, Json] = {}
    for route in routes:
        path = route.path.replace(":path", "")
        operation = _operation(route, path)
        operation["parameters"] = [*_path_parameters(path, served_names)]
        if route.query is not None:
            operation["parameters"] += _query_parameters(route.query)
        if route.method == "POST":
            operation["responses"]["200"]["links"] = _links(path, routes)
        if needs_key and not route.is_open:
            operation["security"] = [{name: []} for name in _KEYS]
        paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "fathom", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas} | ({"securitySchemes": _KEYS} if needs_key else {}),
    }


def _operation(route: RouteSpec, path: str) -> Json:
    streams = route.body is not None and "stream" in route.body.__struct_fields__
    kinds = [route.gives] + [route.form.stream_type.decode().partition(";")[0]] * streams
    error = {"application/json": {"schema": _ref(route.form.error_kind)}}
    told: Json = {
        "operationId": _operation_id(route),
        "summary": (route.handler.__doc__ or "").partition("\n")[0],
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {} for kind in kinds}},
            "4XX": {"description": "What is wrong with the request.", "content": error},
            "503": {"description": "Not ready.", "content": {"application/json": {}}},
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": _ref(route.body)}}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _operation_id(route: RouteSpec) -> str:
    return re.sub(r"\W+", "_", f"{route.method}{route.path}").lower().strip("_")


def _links(path: str, routes: tuple[RouteSpec, ...]) -> Json:
    """The routes that are about what a POST to `path` has made."""
    made = re.compile(re.escape(path) + r"/{(\w+)}")
    found = ((route, made.match(route.path)) for route in routes)
    return {
        _operation_id(route): {
            "operationId": _operation_id(route),
            "parameters": {match[1]: "$response.body#/id"},
        }
        for route, match in found
        if match
    }


def _path_parameters(path: str, names: tuple[str, ...]) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", path):
        schema = _model(names) if name == "model" else {**_TEXT, "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(kind: type[Struct]) -> Iterator[Json]:
    _, found = msgspec.json.schema_components([kind])
    for name, schema in found[kind.__name__]["properties"].items():
        yield {"name": name, "in": "query", "schema": schema}


def _schemas(kinds: set[type[Struct]], names: tuple[str, ...], is_lenient: bool) -> Json:
    """The schemas of `kinds` and of all structs in them, by name."""
    schemas: Json = {}
    for kind in kinds:
        dialect = _dialect(kind)
        template = f"{_SCHEMAS}{dialect}.{{name}}"
        _, found = msgspec.json.schema_components([kind], ref_template=template)
        schemas |= {f"{dialect}.{name}": schema for name, schema in found.items()}
    for schema in schemas.values():
        _as_read(schema, names, is_lenient)
    for (kind, name), by_type in _READ_BY_TYPE.items():
        for word, one in by_type.items():
            schema = schemas[_name(one)]
            schema["properties"]["type"] = {"const": word}
            schema["required"] = sorted({*schema.get("required", ()), "type"})
        _put_items(schemas[_name(kind)]["properties"][name], [_ref(k) for k in by_type.values()])
    message = schemas[_name(responses.MessageItem)]  # what an item without a type is
    message["properties"]["type"] = {"enum": ["message", None]}
    message["required"].remove("type")
    for kind in _WITH_CONVERSATIONS:
        _put_items(schemas[_name(kind)]["properties"]["messages"], list(_messages(is_lenient)))
    for (kind, name), bound in _BOUNDS.items():
        schemas[_name(kind)]["properties"][name] |= bound
    return dict(sorted(schemas.items()))


def _as_read(schema: Json, names: tuple[str, ...], is_lenient: bool) -> None:
    """What `decode` makes of every struct: nulls are fields that were not sent, and no other
    fields are taken."""
    properties = schema.get("properties", {})
    if "model" in properties:
        properties["model"] = _model(names)
    for name in properties.keys() - schema.get("required", ()):
        properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    schema["additionalProperties"] = is_lenient


def _put_items(schema: Json, objects: list[Json]) -> None:
    """Let the lists in `schema` hold `objects`."""
    for one in schema.get("anyOf", [schema]):
        if "anyOf" in one:
            _put_items(one, objects)
        elif one.get("type") == "array":
            one["items"] = {"anyOf": objects}


def _messages(is_lenient: bool) -> Iterator[Json]:
    """A schema for each role's messages, by the fields that `text.messages` takes."""

    def read(fields: Iterable[str], required: list[str], kinds: Json, rest: Json = _TEXT) -> Json:
        properties = {name: kinds.get(name, rest) for name in sorted(fields)}
        told: Json = {"type": "object", "properties": properties, "required": required}
        _as_read(told, (), is_lenient)
        return told

    part = read(messages.PART_FIELDS, ["type", "text"], {"type": {"const": "text"}})
    called: Json = {
        "name": {**_TEXT, "pattern": r"^\S+$"},
        "arguments": {"type": ["string", "object"]},
        "parsed_arguments": {},
    }
    function = read(messages.CALLED_FIELDS, ["name"], called)
    call: Json = {"type": {"const": "function"}, "function": function}
    calls = read(messages.CALL_FIELDS, ["function"], call, rest={})
    kinds: Json = {
        "content": {"anyOf": [_TEXT, {"type": "array", "items": part}]},
        "tool_calls": {"type": "array", "items": calls},
        "prefix": {"type": "boolean"},
        "parsed": {},
    }
    for role, fields in messages.FIELDS.items():
        names = [role, *(name for name, meant in messages.ALIASES.items() if meant == role)]
        required = ["role"] if role == "assistant" else ["role", "content"]
        yield read(fields, required, {**kinds, "role": {"enum": names}})


def _model(names: tuple[str, ...]) -> Json:
    return {**_TEXT, "enum": list(names)} if names else _TEXT


def _dialect(kind: type[Struct]) -> str:
    return kind.__module__.split(".")[2]


def _name(kind: type[Struct]) -> str:
    return f"{_dialect(kind)}.{kind.__name__}"


def _ref(kind: type[Struct]) -> Json:
    return {"$ref": f"{_SCHEMAS}{_name(kind)}"}
