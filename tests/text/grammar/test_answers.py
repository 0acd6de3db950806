"""Compares what can be written under a grammar with `jsonschema`, and forced tokens with those that
the tokenizer gives for the whole text."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fathom.core.structured import MAX_CHOICES
from fathom.core.types import SamplingParams, StructuredOutputs, TokenEvent
from fathom.errors import RequestError
from fathom.text.channels import OutputFormat
from fathom.text.grammar.asked import Asked, ToolRule, ToolRules
from fathom.text.grammar.build import grammar_text, lark_text
from fathom.text.grammar.engine import GrammarEngine
from fathom.text.grammar.schema import ENFORCED, REMARKS, subschemas
from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from fathom.text.output import OutputStream
from fathom.text.tokenizer import Tokenizer
from tests.text.grammar.walks import allowed_ids, constraint_of, random_answer

EMBEDDED = Path(__file__).resolve().parents[3] / "src" / "fathom" / "weights" / "embedded"


@pytest.fixture(scope="module")
def embedded() -> tuple[Tokenizer, GrammarEngine]:
    tokenizer = Tokenizer.load(EMBEDDED)
    return tokenizer, GrammarEngine(tokenizer)


SHORT = st.text('abé"\\ 你1', max_size=3)
BOUNDS = st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda b: (b[0], b[0] + b[1]))
STRINGS = st.one_of(
    st.integers(0, 6).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n}),
    st.sampled_from(["^[a-c]+$", "x.?y", "^\\d{1,3}$", "a|^b"]).map(
        lambda p: {"type": "string", "pattern": p, "maxLength": 12}
    ),
    st.sampled_from(["date", "time", "uuid", "ipv4"]).map(
        lambda f: {"type": "string", "format": f}
    ),
)
NUMBERS = st.one_of(
    BOUNDS.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[1]}),
    BOUNDS.map(lambda b: {"type": "number", "exclusiveMinimum": b[0], "maximum": b[1] + 1}),
    st.sampled_from([2, 3, 7, 0.5]).map(lambda m: {"type": "number", "multipleOf": m}),
)
LEAVES = st.one_of(
    STRINGS,
    NUMBERS,
    st.lists(st.one_of(SHORT, st.integers(-3, 3), st.none()), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"type": "boolean"}, {"type": ["null", "boolean"]}, {"const": {"a": [1]}}]),
)
NAMES = st.sampled_from(["a", "b", "key", 'é"', "a b", "first_name"])


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: list[str], more: Any) -> dict[str, Any]:
        schema = {"type": "object", "properties": properties, "additionalProperties": more}
        return schema | {"required": [name for name in properties if name in required]}

    return st.builds(
        build, st.dictionaries(NAMES, inner, max_size=3), st.lists(NAMES), st.just(False)
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
        inner.map(lambda one: {"$defs": {"x": one}, "$ref": "#/$defs/x"}),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda some: {"type": "array", "prefixItems": some, "items": False}
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_whatever_is_written_parses_and_validates(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, seed: int, jumps: bool, compact: bool
) -> None:
    tokenizer, engine = embedded
    # Inner $defs are looked up at the root by both; names would clash.
    assume(not any("$defs" in s for p, s in subschemas(schema) if p != "#" and isinstance(s, dict)))
    constraint = constraint_of(engine, json=schema, disable_any_whitespace=compact)
    answer = random_answer(constraint, tokenizer, random.Random(seed), jumps=jumps)
    assume(answer is not None)
    text = answer[0]  # type: ignore[index]  # assumed above
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert text == text.strip()
    assert "  \n" not in text
    assert "\n\n" not in text


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32))
def test_jumps_write_what_the_tokenizer_would(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, seed: int
) -> None:
    """A model that writes some text token by token as the tokenizer cuts it, and one that jumps
    where the grammar forces tokens, give the same tokens."""
    tokenizer, engine = embedded
    assume(not any("$defs" in s for p, s in subschemas(schema) if p != "#" and isinstance(s, dict)))
    form: dict[str, Any] = {"json": schema, "disable_any_whitespace": True}
    answer = random_answer(
        constraint_of(engine, **form), tokenizer, random.Random(seed), jumps=False
    )
    assume(answer is not None)
    wanted = tokenizer.encode(answer[0])  # type: ignore[index]  # assumed above
    constraint, ids = constraint_of(engine, **form), []
    while len(ids) < len(wanted):
        tokens = constraint.forced() or (wanted[len(ids)],)
        for token_id in tokens:
            constraint.accept(token_id)
        assert not constraint.error
        ids += tokens
        assert tuple(ids) == wanted[: len(ids)]
    assert tokenizer.eos_ids[0] in allowed_ids(constraint)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32), st.sampled_from(["fenced", "bare"]), st.booleans())
def test_forced_calls_are_read_back_by_the_parser(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, seed: int, form: Any, single: bool
) -> None:
    tokenizer, engine = embedded
    assume(not any("$defs" in s for p, s in subschemas(schema) if isinstance(s, dict)))
    schema = {"type": "object", "properties": {"x": schema}, "additionalProperties": False}
    tools = ToolRules(
        tools=(
            ToolRule(name="set_x", schema=json.dumps(schema), is_strict=True),
            ToolRule(name="wait", schema='{"type": "object", "maxProperties": 0}'),
        ),
        format=form,
        must_call=True,
        is_single=single,
    )
    constraint = engine.constraint(engine.check(Asked(tools=tools)))
    answer = random_answer(constraint, tokenizer, random.Random(seed), jumps=True)
    assume(answer is not None)
    ids = (*answer[1], tokenizer.eos_ids[0])  # type: ignore[index]  # assumed above
    stream = OutputStream(tokenizer, SamplingParams(), format=OutputFormat(tools=form))
    delta = stream.push(TokenEvent("r", ids, finish_reason="stop"))
    assert delta is not None
    assert (delta.text, delta.finish_reason) == ("", "tool_calls")
    names = {call.index: call.name for call in delta.tool_calls if call.name}
    assert not single or len(names) == 1
    for index, name in names.items():
        text = "".join(call.arguments for call in delta.tool_calls if call.index == index)
        if name == "set_x":
            jsonschema.validate(json.loads(text), schema)
        else:
            assert (name, json.loads(text)) == ("wait", {})


@settings(max_examples=100, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32), st.integers(0, 3))
def test_rows_for_drafts_equal_the_masks_of_walking_there(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, seed: int, num_drafts: int
) -> None:
    tokenizer, engine = embedded
    assume(not any("$defs" in s for p, s in subschemas(schema) if p != "#" and isinstance(s, dict)))
    pick, constraint = random.Random(seed), constraint_of(engine, json=schema)
    twin = constraint_of(engine, json=schema)
    for _ in range(20):
        drafts, rows = [], []
        for _ in range(num_drafts + 1):
            rows.append(twin.mask(()).read())
            drafts.append(pick.choice(allowed_ids(twin)))
            if drafts[-1] in tokenizer.eos_ids:
                return
            twin.accept(drafts[-1])
        assert constraint.count_allowed([*drafts, tokenizer.special_ids["<think>"]]) == len(drafts)
        assert constraint.mask(drafts[:-1]).read() == b"".join(rows)
        for token_id in drafts:
            constraint.accept(token_id)


def test_reasoning_is_free_and_the_answer_is_not(
    embedded: tuple[Tokenizer, GrammarEngine], bare_tokenizer: Tokenizer
) -> None:
    for tokenizer, engine in (embedded, (bare_tokenizer, GrammarEngine(bare_tokenizer))):
        form = StructuredOutputs(choice=("yes", "no"))
        for reasoning, before in (("inside", ""), ("opens", "<think>"), ("none", None)):
            grammar = engine.check(Asked(form=form, reasoning=reasoning))  # type: ignore[arg-type]
            thought = "" if before is None else f'{before}Hm {{"\n no\n</think>\n\n'
            for answer, fits in (("yes", True), ("no", True), ("maybe", False), ("", False)):
                ids = tokenizer.encode(thought + answer, special=True)
                constraint = engine.constraint(grammar)
                is_whole = constraint.count_allowed(ids) == len(ids)
                for token_id in ids if is_whole else ():
                    constraint.accept(token_id)
                may_end = is_whole and tokenizer.eos_ids[0] in allowed_ids(constraint)
                assert may_end == fits, (reasoning, answer)


def test_a_required_call_leaves_no_other_form(embedded: tuple[Tokenizer, GrammarEngine]) -> None:
    """With a form of answer beside it, `tool_choice: required` let the answer be of that form."""
    tokenizer, engine = embedded
    form = StructuredOutputs(choice=("yes", "no"))
    for must_call in (False, True):
        tools = ToolRules(tools=(ToolRule(name="f"),), format="bare", must_call=must_call)
        constraint = engine.constraint(engine.check(Asked(form=form, tools=tools)))
        assert constraint.count_allowed([tokenizer.special_ids[CALLS_BEGIN]]) == 1
        assert bool(constraint.count_allowed(tokenizer.encode("yes"))) == (not must_call)


def test_a_regex_of_nothing_is_the_empty_answer(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """As it is of vLLM; it was an error that spoke of tokens which nobody had written."""
    tokenizer, engine = embedded
    assert allowed_ids(constraint_of(engine, regex="")) == [tokenizer.eos_ids[0]]


def test_as_many_choices_as_a_request_may_have_can_be_written(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """Over 2,000 of them were taken, and ended each answer with an error at its first token."""
    tokenizer, engine = embedded
    texts = [f'{i * 7919 % MAX_CHOICES:04}"\\你🙂\n{{{"x" * (i % 3)}' for i in range(MAX_CHOICES)]
    grammar = engine.check(Asked(form=StructuredOutputs(choice=tuple(texts))))
    for seed, text in enumerate(texts[::512]):
        constraint = engine.constraint(grammar)
        ids = (*tokenizer.encode(text), tokenizer.eos_ids[0])
        assert constraint.count_allowed(ids) == len(ids)
        answer = random_answer(
            engine.constraint(grammar), tokenizer, random.Random(seed), jumps=True
        )
        assert answer is not None
        assert answer[0] in texts


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"type": "object", "properties": {f"p{i}": True for i in range(600)}},
            "more states than the limit.*at #:",
        ),
        ({"$ref": "#"}, "at #: it lets nothing be written"),
    ],
    ids=["many properties", "a circle"],
)
def test_a_schema_that_no_answer_can_begin_is_refused_where_it_stands(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, words: str
) -> None:
    """The first compiled, and each answer ended with an error that named no field."""
    form = StructuredOutputs(json=schema)
    for asked in (Asked(form=form), Asked(form=form, reasoning="inside")):
        with pytest.raises(RequestError, match=words) as caught:
            embedded[1].check(asked)
        assert caught.value.param == "structured_outputs.json"


def test_a_trigger_that_begins_another_hides_no_tag(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """The shorter one is complete first: a tag of the longer one could never be written."""
    tokenizer, engine = embedded
    structures = [{"begin": begin, "schema": {"type": "null"}} for begin in ("<f", "<fg>")]
    tags = {"structures": structures, "triggers": ["<f", "<fg"]}
    for text, fits in (
        ("a <fnull", True),
        ("<fg>null b <fnull", True),
        ("<fg", True),
        ("<fh", False),
    ):
        ids = tokenizer.encode(text)
        assert (constraint_of(engine, structural_tag=tags).count_allowed(ids) == len(ids)) == fits


def test_markers_within_reasoning_and_text_are_not_allowed(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """A model that opened a call while it thinks would escape from the grammar."""
    tokenizer, engine = embedded
    ids = {tokenizer.special_ids[m] for m in (CALLS_BEGIN, CALL_BEGIN, SEP, CALL_END, CALLS_END)}
    form = StructuredOutputs(json_object=True)
    constraint = engine.constraint(engine.check(Asked(form=form, reasoning="inside")))
    assert not ids & set(allowed_ids(constraint))
    tools = ToolRules(tools=(ToolRule(name="f", is_strict=True),), format="bare")
    constraint = engine.constraint(engine.check(Asked(tools=tools)))
    assert ids & set(allowed_ids(constraint)) == {tokenizer.special_ids[CALLS_BEGIN]}


def test_every_keyword_that_the_engine_lacks_is_refused_before_it(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """Of draft 2020-12's keywords, by its own meta-schemas, none passes that does nothing."""
    _, engine = embedded
    known: set[str] = set()
    for uri in jsonschema.validators.SPECIFICATIONS:
        if "2020-12" in uri:
            known |= set(jsonschema.validators.SPECIFICATIONS[uri].contents.get("properties", {}))
    assert {"properties", "not", "uniqueItems"} <= known
    for keyword in known - ENFORCED - REMARKS:
        with pytest.raises(RequestError):
            engine.check(Asked(form=StructuredOutputs(json={keyword: {"type": "string"}})))


@pytest.mark.parametrize(
    ("lark", "place"),
    [
        ('start: "a" %json {"items": {"contains": {"type": "null"}}}', "at #/items/contains"),
        ('start: x\nx: "%json {" %json {"const": 12345678901234567890}', "at #/const"),
    ],
)
def test_schemas_in_a_grammar_are_held_to_the_same(
    embedded: tuple[Tokenizer, GrammarEngine], lark: str, place: str
) -> None:
    with pytest.raises(RequestError) as told:
        constraint_of(embedded[1], grammar=lark)
    assert (told.value.param, told.value.found) == ("structured_outputs.grammar", place)


@given(
    SCHEMAS, st.sampled_from([{}, {"disable_any_whitespace": True}, {"whitespace_pattern": " "}])
)
def test_a_grammar_that_a_proxy_built_stays_as_it_is(
    embedded: tuple[Tokenizer, GrammarEngine], schema: Any, more: dict[str, Any]
) -> None:
    """It was refused for what stands in it beside the schema: every form behind a proxy with a
    tokenizer was."""
    form = StructuredOutputs(json=json.dumps(schema), **more)
    try:
        sent = lark_text(Asked(form=form), embedded[0])
    except RequestError:
        assume(False)
    told = grammar_text(Asked(form=StructuredOutputs(grammar=sent)), embedded[0])
    (own,) = (one for one in json.loads(told)["grammars"] if one["name"] == "own")
    assert own["lark_grammar"] == sent


def test_words_of_a_grammar_that_look_like_schemas_stay(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    tokenizer, engine = embedded
    word = '%json {"contains": 1}'
    lark = f"start: {json.dumps(word)} /%json [{{][}}]/ // {word}"
    ids = tokenizer.encode(f"{word}%json {{}}")
    assert constraint_of(engine, grammar=lark).count_allowed(ids) == len(ids)


@pytest.mark.parametrize("comment", ['# a "', '// a "', "# /", "# '"])
def test_no_comment_hides_a_schema_from_its_checks(
    embedded: tuple[Tokenizer, GrammarEngine], comment: str
) -> None:
    """A quote behind `#`, which begins comments too, went on to the schema's own."""
    lark = f'start: "a" {comment}\n | %json {{"const": 12345678901234567890123}}'
    with pytest.raises(RequestError, match="would round"):
        constraint_of(embedded[1], grammar=lark)


OPTIONS = [
    ('[max_tokens=5,\n stop="]["]: "y"', "max_tokens"),
    ('[capture]: "y"', "capture"),
    ('[lazy]: /[stop]:/ | "[stop]:"  # [stop]:', ""),
]


@pytest.mark.parametrize(("rest", "named"), OPTIONS)
def test_options_of_rules_that_sample_are_refused(
    embedded: tuple[Tokenizer, GrammarEngine], rest: str, named: str
) -> None:
    """Over two lines, or with a bracket in its text, one was ignored."""
    asked = Asked(form=StructuredOutputs(grammar=f"start: a\na{rest}"))
    if named:
        with pytest.raises(RequestError, match=f"the option {named} of a rule"):
            embedded[1].check(asked)
    else:
        embedded[1].check(asked)


@pytest.mark.parametrize("opening", ['"', "/", "[stop "])
def test_a_grammar_without_an_end_is_read_in_time_by_its_size(
    embedded: tuple[Tokenizer, GrammarEngine], opening: str
) -> None:
    """Each of its quotes was tried as a beginning: 32 KiB took ten seconds, these hours. A proxy
    does that in its own process, which no limit ends."""
    lark = f"start: {opening}" + f"\\{opening}" * 2**17
    told = grammar_text(Asked(form=StructuredOutputs(grammar=lark)), embedded[0])
    assert lark in [one["lark_grammar"] for one in json.loads(told)["grammars"]]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.integers(-(2**66), 2**66),
        st.integers(2**53 - 3, 2**53 + 3),
        st.sampled_from([2**63 - 1, -(2**63) + 1, -(2**63), 12345678901234567890123, 1e22]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.decimals(-(10**9), 10**9, places=6).map(float),
    )
)
def test_a_number_is_written_as_it_was_asked_or_refused(
    embedded: tuple[Tokenizer, GrammarEngine], number: float
) -> None:
    """The engine reads large integers and long decimals as doubles near them, and wrote those:
    12345678901234568000000 for {"const": 12345678901234567890123}. At -(2**63) it crashed."""
    tokenizer, engine = embedded
    schema: Any = {"enum": [{"a/b": [0, number]}]}
    refusal: RequestError | None = None
    try:
        constraint = constraint_of(engine, json=schema, disable_any_whitespace=True)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.found == "at #/enum/0/a~1b/1"
        assert not 1e-9 < abs(number) < 2**53 or len(repr(number)) > 15
        for keyword in ("const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            with pytest.raises(RequestError, match=f"at #/items/{keyword}$"):
                constraint_of(engine, json={"type": "array", "items": {keyword: number}})
        return
    answer = random_answer(constraint, tokenizer, random.Random(1), jumps=True)
    assert answer is not None
    assert json.loads(answer[0]) == schema["enum"][0]
    if isinstance(number, int):
        constraint = constraint_of(engine, json={"minimum": number, "maximum": number})
        assert constraint.count_allowed(tokenizer.encode(str(number)))


def test_a_grammar_that_grows_too_large_says_so(embedded: tuple[Tokenizer, GrammarEngine]) -> None:
    """Its error comes with a mask that only ends the answer, and nothing is forced any more. The
    next answer under it begins anew: automata of one grammar share states, and once all had that
    error as long as the grammar was remembered."""
    tokenizer, engine = embedded
    regex, pick = "((((a{1,999}b?){1,999}c?){1,999}d?){1,999}e?){1,999}", random.Random(1)
    constraint = constraint_of(engine, regex=regex)
    while not constraint.error:
        ids = [i for i in allowed_ids(constraint) if i not in tokenizer.eos_ids]
        constraint.accept(pick.choice(ids))
        row = constraint.mask(()).read()
    assert "lexer" in constraint.error
    assert [i for i in range(len(row) * 8) if row[i >> 3] >> (i & 7) & 1] == [tokenizer.eos_ids[0]]
    assert constraint.forced() == ()
    again = constraint_of(engine, regex=regex)
    again.accept(pick.choice(allowed_ids(again)))
    assert allowed_ids(again)


def test_masks_of_one_grammar_are_those_of_one_thread_whoever_reads_them(
    embedded: tuple[Tokenizer, GrammarEngine],
) -> None:
    """Its sequences share the automaton's states, which masks add to; others advance meanwhile."""
    tokenizer, engine = embedded
    form: dict[str, Any] = {"json": {"type": "string", "maxLength": 9, "pattern": "^[a-m ]*$"}}
    text = '"' + "male bike "[:9]
    ids = tokenizer.encode(text)
    alone, wanted = constraint_of(GrammarEngine(tokenizer), **form), []
    for token_id in ids:
        wanted.append(alone.mask(()).read())
        alone.accept(token_id)
    constraints = [constraint_of(engine, **form) for _ in range(len(ids))]
    for count, constraint in enumerate(constraints):
        for token_id in ids[:count]:
            constraint.accept(token_id)
    masks = [constraint.mask(()) for constraint in constraints]
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(lambda mask: mask.read(), masks * 3)
        moving = constraint_of(engine, **form)
        for token_id in ids:
            moving.accept(token_id)
        assert list(read) == wanted * 3
