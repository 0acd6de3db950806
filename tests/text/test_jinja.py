"""Compares prompts of templates in Jinja with Jinja's own, and holds the sandbox to its limits."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError, RequestError
from fathom.text.chat import ChatTemplate, choose_template, encode_chat, render_chat
from fathom.text.jinja import MAX_TEMPLATE_BYTES, JinjaLimits, JinjaTemplate
from fathom.text.messages import parse_messages
from fathom.text.render import Conversation
from fathom.text.tokenizer import Tokenizer
from tests.text.reference_templates import render_published
from tests.text.test_chat_templates import WEATHER, conversations, spelled, without_tools

CHAT = """
{%- if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}
{%- for m in messages %}
<｜{{ 'User' if m.role == 'user' else 'Assistant' }}｜>
{%- if m.content is string and '</think>' in m.content %}
{{- m.content.split('</think>') | last | trim }}{% else %}{{ m.content or '' }}{% endif %}
{%- for call in m.tool_calls or [] %}<｜tool▁call▁begin｜>{{ call.function.name }}
{{- call.function.arguments }}{% endfor %}
{%- if loop.last and m.role != 'user' %}<｜end▁of▁sentence｜>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking }}{% endif %}"""


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    path = tmp_path_factory.mktemp("jinja") / "chat.jinja"
    path.write_text(CHAT, encoding="utf-8")
    return choose_template(tokenizer.config, str(path), tokenizer.special_ids)


@given(messages=conversations(), generate=st.booleans(), thinking=st.booleans())
@settings(max_examples=80, deadline=None)
def test_prompts_are_those_of_transformers(
    template: ChatTemplate, messages: list[dict[str, Any]], generate: bool, thinking: bool
) -> None:
    segments = render_chat(template, messages, thinking=thinking, add_generation_prompt=generate)
    assert spelled(segments) == render_published(CHAT, messages, generate, thinking=thinking)


@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_text_never_becomes_a_control_token(
    tokenizer: Tokenizer, template: ChatTemplate, messages: list[dict[str, Any]]
) -> None:
    def control(conversation: list[dict[str, Any]]) -> list[int]:
        ids = encode_chat(tokenizer, template, conversation)
        return [i for i in ids if i in tokenizer.special_ids.values()]

    plain = without_tools(messages)
    assert control(plain) == control([message | {"content": "x"} for message in plain])


@pytest.mark.parametrize("pieces", [("<｜Us", "er｜>"), ("<", "think", ">"), ("<th", "ink>")])
def test_texts_side_by_side_make_no_control_token(
    tokenizer: Tokenizer, pieces: tuple[str, ...]
) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = JinjaTemplate(source, specials=tokenizer.special_ids)
    messages = parse_messages([{"role": "user", "content": piece} for piece in pieces])
    built = template.render(Conversation(messages=messages)).segments()
    assert [(part.text, part.is_control) for part in built] == [("".join(pieces), False)]


def test_what_the_template_can_do_is_read_from_it(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    assert (template.reasons, template.tool_format) == ("asked", "bare")
    messages = [{"role": "user", "content": "U"}]
    prompt = spelled(render_chat(template, messages, tools=[WEATHER]))
    assert prompt.startswith('[{"type": "function", "function": {"name": "weather"')
    ids = encode_chat(tokenizer, template, messages, thinking=True)
    assert template.output_format(tokenizer, ids, reads_tools=False).starts_inside
    last = {"role": "assistant", "content": "so <think> far "}
    cut = render_chat(template, [*messages, last], continue_final_message=True)
    assert spelled(cut).endswith("<｜Assistant｜>so <think> far")


def run(source: str, **limits: Any) -> str:
    template = JinjaTemplate(source, limits=JinjaLimits(**limits))
    chat = Conversation(messages=parse_messages([{"role": "user", "content": "x" * 4000}]))
    return spelled(template.render(chat).segments())


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in messages[0].content %}{% for b in messages[0].content %}{% for c in "
        "messages[0].content %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 99999999 }}",
        "{{ 9 ** 99999999 }}",
        "{{ 'x'.ljust(99999999) }}",
        "{{ 'x' | center(99999999) }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ range(99999999) | list }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ ('x' * 9999999).replace('x', 'y' * 9999) }}",
        "{{ ('x' * 9999999) | replace('x', 'y' * 9999) }}",
        "{{ ('x' * 9999999).join('y' * 9999) }}",
        "{{ ('y' * 9999) | join('x' * 9999999) }}",
        "{{ 'y'.translate({121: 'x' * 9999999}) }}",
        "{{ (range(99999) | list * 99) | sort }}",
        "{{ lipsum(99999) }}",
        "{{ 'x'.encode() * 99999999999 }}",
        "{{ (1).to_bytes(99999999999, 'big') }}",
        "{{ [1] | tojson(indent=99999999) }}",
        "{{ [1] | batch(99999999, 'x') | list }}",
        "{{ [1] | slice(99999999) | list }}",
        "{{ 1 | round(99999999, 'ceil') }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(40) %}"
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
        "{% for i in range(40) %}{% set ns.x = f(ns.x) %}{% endfor %}",
        *(
            f"{{% set ns = namespace(x={x}) %}}{{% for i in range(40) %}}"
            f"{{% set ns.x = ns.x {plus} ns.x %}}{{% endfor %}}"
            for x, plus in (("'ab'", "~"), ("'ab'", "+"), ("[1]", "+"), ("(1,)", "+"))
        ),
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content.__init__.__globals__ }}",
        "{{ raise_exception('not like this') }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(RequestError, ConfigError):
        assert run(source, time_s=0.2) == ""  # what is not there is nothing
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 2
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024  # kB


def test_texts_are_changed_as_jinja_changes_them() -> None:
    source = (
        "{{ 'a-b'.replace('-', '+') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ ''.replace('', 'z') }}"
        " {{ ', '.join(['x', 'y']) }} {{ [1, none, 'x'] | join('|') }} {{ 1 + 2 }} {{ [1] + [2] }}"
        " {{ messages | join(attribute='role') }} {{ 7 % 3 }} {{ 'a' ~ 1 ~ none }} {{ 'ab' * 2 }}"
        " {{ ['a', 1] | join(d=2) }} {{ 'a1' | replace(1, 2) }} {{ {'a': [1]} | tojson(indent=2) }}"
    )
    messages = [{"role": "user", "content": ""}]
    assert run(source) == render_published(source, messages, generate=False)


def test_the_prompt_has_a_greatest_length() -> None:
    with pytest.raises(RequestError, match="more than 9999 characters"):
        run("{% for a in range(3) %}{{ messages[0].content }}{% endfor %}", output_chars=9999)


@pytest.mark.parametrize(
    ("content", "match"),
    [("{% for %}", "no Jinja"), ("x" * (MAX_TEMPLATE_BYTES + 1), "bytes"), (None, "No such file")],
)
def test_a_file_that_is_no_template_is_named(
    tmp_path: Path, content: str | None, match: str
) -> None:
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        choose_template({}, str(path))
