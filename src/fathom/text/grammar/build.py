"""What was asked of an answer, as one grammar in the notation of the grammar engine (Lark).

    start: (reasoning gap)? (form | text? calls)       where a call is required, calls alone

Control tokens stand in it by id, so that no text of the answer can pretend to be one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.text.grammar.asked import Asked, Reasoning, ToolRule, ToolRules
from fathom.text.grammar.schema import SchemaFault, parse_schema
from fathom.text.grammar.translate import in_engine_words
from fathom.text.markers import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    SEP,
    THINK,
)
from fathom.text.tokenizer import Tokenizer

# A space, or a line break with its indent: nothing with which an answer could go on for ever.
_WHITE_SPACE = r" |\n[ ]{0,32}"
_NO_WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT = {"type": "object"}
_OPTIONS = re.compile(r"\[([^\[\]]*)\]\s*:")  # of a rule
_IGNORED_OPTION = re.compile(r"\b(temperature|max_tokens|stop|capture)\b")
# What a schema's word may stand in without being one, and the word. What has no end goes on to that
# of the text: to look for one at each quote would take time by the square of their number.
_LARK = re.compile(r'"(?:\\.|[^"\\])*"?|/(?![/*])(?:\\.|[^/\\])*/?|(?://|#).*|(%json)\s*')


def grammar_text(asked: Asked, tokenizer: Tokenizer) -> str:
    """The grammar, for the engine.

    Raises: RequestError that names the field at fault, with a pointer into a schema.
    """
    main, others = _grammar(asked, tokenizer)
    grammars = [{"name": "main", "lark_grammar": main}, *others]
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def lark_text(asked: Asked, tokenizer: Tokenizer) -> str:
    """The grammar in Lark alone, for an engine elsewhere that has the same tokenizer.

    Raises: RequestError as above, and for a grammar of the request's own beside anything else.
    """
    main, others = _grammar(asked, tokenizer)
    if others and asked.form is not None:
        raise RequestError(
            f"{asked.form.field} cannot be combined with reasoning or calls here",
            param=asked.form.field,
            code="unsupported_parameter",
            fix="ask for no reasoning, and for a form other than a grammar",
        )
    return main


def _grammar(asked: Asked, tokenizer: Tokenizer) -> tuple[str, list[dict[str, str]]]:
    """The grammar's text, and those that it names."""
    rules = _Rules(tokenizer)
    before = rules.reasoning(asked.reasoning)
    answers = []
    if asked.form is not None and not (asked.tools and asked.tools.must_call):
        answers.append(rules.form(asked.form))
    if asked.tools is not None:
        calls = rules.calls(asked.tools)
        has_text = asked.form is None and not asked.tools.must_call
        answers.append(f"TEXT ({calls})?" if has_text else calls)
    rules.lines.insert(0, f"start: {before} ({' | '.join(answers)})")
    return "\n".join([*rules.lines, "TEXT: /(?s:.*)/"]), rules.others


class _Rules:
    """The lines of a grammar under construction, and further grammars that it names."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = tokenizer.special_ids
        self._never = ",".join(
            str(i) for i in sorted({*tokenizer.special_ids.values(), *tokenizer.eos_ids})
        )
        self.lines: list[str] = []
        self.others: list[dict[str, str]] = []

    def _marker(self, name: str) -> str:
        """A marker: its token, or its text where the tokenizer has none."""
        return f"<[{self._ids[name]}]>" if name in self._ids else json.dumps(name)

    def reasoning(self, kind: Reasoning) -> str:
        """What precedes the answer: any text, its end, and line breaks as models put them there."""
        if kind == "none":
            return ""
        opening = self._marker(THINK) if kind == "opens" else ""
        self.lines.append(r"GAP: /\n{0,2}/")
        if END_THINK in self._ids:
            return f"{opening} <[^{self._never}]>* {self._marker(END_THINK)} GAP"
        self.lines.append(r"thoughts[lazy]: /(?s:.*)<\/think>/")
        return f"{opening} thoughts GAP"

    def form(self, form: StructuredOutputs) -> str:
        """The rule for the answer proper."""
        if form.json is not None or form.json_object:
            field = form.field_path("json")
            text = json.dumps(_ANY_OBJECT) if form.json_object else str(form.json)
            return self._json(_checked(text, field), form)
        if form.regex is not None:
            return _regex(form.regex)
        if form.choice is not None:
            # A terminal, as rules may not have so many items.
            self.lines.append(f"CHOICE: {' | '.join(json.dumps(text) for text in form.choice)}")
            return "CHOICE"
        if form.structural_tag is not None:
            return self._tags(str(form.structural_tag), form)
        return self._own_grammar(str(form.grammar), form.field_path("grammar"))

    def _json(self, schema: Any, form: StructuredOutputs | None = None, options: Any = None) -> str:
        """The rule of a checked schema; `options`: in place of the form's."""
        if options is None:
            options = {"whitespace_pattern": _WHITE_SPACE}
            if form is not None and form.whitespace_pattern is not None:
                options = {"whitespace_pattern": form.whitespace_pattern}
            elif form is not None and form.disable_any_whitespace:
                options = _NO_WHITE_SPACE
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)

    def _own_grammar(self, text: str, field: str) -> str:
        try:
            lark = any_to_lark(text)
        except Exception as error:  # a converter that raises whatever its parsing meets
            raise RequestError(
                f"{field} is not a grammar", param=field, found=str(error)[:300]
            ) from None
        for options in _OPTIONS.findall(_LARK.sub(" ", lark)):
            if (ignored := _IGNORED_OPTION.search(options)) is not None:
                what = f"{field}: the option {ignored[1]} of a rule is not honoured"
                raise RequestError(what, param=field)
        self.others.append({"name": "own", "lark_grammar": self._own_schemas(lark, field)})
        return "@own"

    def _own_schemas(self, lark: str, field: str) -> str:
        """The grammar with its schemas checked and in the engine's words, as any other."""
        told, at = [], 0
        for found in _LARK.finditer(lark):
            if found[1] is None or found.start() < at:
                continue
            try:
                _, end = json.JSONDecoder().raw_decode(lark, found.end())
            except ValueError:
                continue  # the engine says what is wrong with it
            schema = parse_schema(lark[found.end() : end], field)
            options = schema.get("x-guidance") if isinstance(schema, dict) else None
            if _is_own(options):  # a proxy sends what was built here already
                schema = {key: value for key, value in schema.items() if key != "x-guidance"}
            rule = self._json(_checked_value(schema, field), options=options)
            told += [lark[at : found.start()], rule]
            at = end
        return "".join([*told, lark[at:]])

    def calls(self, tools: ToolRules) -> str:
        """A block of calls in the template's form."""
        names = []
        for index, tool in enumerate(tools.tools):
            names.append(f"call_{index}")
            arguments = self._json(_arguments_schema(tool))
            opening = [self._marker(CALL_BEGIN)]
            closing = self._marker(CALL_END)
            if tools.format == "fenced":
                opening += ['"function"', self._marker(SEP), json.dumps(f"{tool.name}\n```json\n")]
                closing = f'"\\n```" {closing}'
            else:
                opening += [json.dumps(tool.name), self._marker(SEP)]
            self.lines.append(f"call_{index}: {' '.join(opening)} {arguments} {closing}")
        self.lines.append(f"call: {' | '.join(names)}")
        between = '"\\n" ' if tools.format == "fenced" else ""
        more = "" if tools.is_single else f"({between}call)*"
        return f"{self._marker(CALLS_BEGIN)} call {more} {self._marker(CALLS_END)}"

    def _tags(self, text: str, form: StructuredOutputs) -> str:
        """Free text in which each trigger opens one of the tags that begin with it."""
        field = form.field_path("structural_tag")
        tags = _structures(text, field)
        for index, (trigger, begin, schema, end) in enumerate(tags):
            self.lines.append(f"trigger_{index}[lazy]: TEXT {json.dumps(trigger)}")
            rest = begin[len(trigger) :]
            parts = [json.dumps(rest)] if rest else []
            parts.append(self._json(_checked_value(schema, f"{field}.structures[{index}].schema")))
            parts += [json.dumps(end)] if end else []
            self.lines.append(f"tag_{index}: trigger_{index} {' '.join(parts)}")
        names = " | ".join(f"tag_{index}" for index in range(len(tags)))
        self.lines.append("tail: TEXT")
        return f"({names})* tail"


def _checked(text: str, field: str) -> Any:
    """The schema in `text`. Raises: RequestError where it cannot be enforced."""
    return _checked_value(parse_schema(text, field), field)


def _is_own(options: Any) -> bool:
    """Whether these are options as `_json` writes them, of white space alone."""
    if options == _NO_WHITE_SPACE:
        return True
    pattern = options.get("whitespace_pattern") if isinstance(options, dict) else None
    return isinstance(pattern, str) and len(options) == 1


def _checked_value(schema: Any, field: str) -> Any:
    told = in_engine_words(schema)
    if isinstance(told, SchemaFault):
        raise told.error(field)
    return told


def _arguments_schema(tool: ToolRule) -> Any:
    if tool.schema is None:
        return _ANY_OBJECT
    told = in_engine_words(parse_schema(tool.schema, tool.param))
    if isinstance(told, SchemaFault):
        if tool.is_strict:
            raise told.error(tool.param)
        return _ANY_OBJECT  # nothing was promised
    # Arguments are an object; a schema need not say so.
    return {"type": "object", **told} if isinstance(told, dict) else told and _ANY_OBJECT


def _regex(pattern: str) -> str:
    return f"/{regex_to_lark(pattern or '()')}/"  # // is a comment


def _structures(text: str, field: str) -> list[tuple[str, str, Any, str]]:
    """vLLM's `structures` with the trigger of each, of several the one that text has completed
    first: (trigger, begin, schema, end)."""

    def wrong(found: str, wanted: str) -> RequestError:
        return RequestError(f"{field} is not valid", param=field, found=found, wanted=wanted)

    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(str(error)[:200], "JSON") from None
    fields = {"type", "structures", "triggers"}
    if not isinstance(raw, dict) or not set(raw) <= fields:
        named = ", ".join(sorted(set(raw) - fields)) if isinstance(raw, dict) else "no object"
        raise wrong(named[:200], "structures and triggers")
    structures, triggers = raw.get("structures"), raw.get("triggers")
    if not (isinstance(structures, list) and structures and _are_texts(triggers)):
        raise wrong("none, or no lists", "lists of structures and of triggers")
    tags = []
    for index, one in enumerate(structures):
        keys = {"begin", "schema", "end"}
        if not (isinstance(one, dict) and {"begin"} <= set(one) <= keys):
            raise wrong(f"structures[{index}]", "objects of begin, schema and end")
        begin, end = one["begin"], one.get("end", "")
        if not (isinstance(begin, str) and isinstance(end, str)):
            raise wrong(f"structures[{index}]", "begin and end as texts")
        fitting = [trigger for trigger in triggers or () if begin.startswith(trigger)]
        if not fitting:
            raise wrong(f"structures[{index}].begin", "a text that starts with a trigger")
        tags.append((min(fitting, key=len), begin, one.get("schema", True), end))
    return tags


def _are_texts(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(item, str) and item for item in items)
