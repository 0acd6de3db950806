"""Compares prompts with those of DeepSeek's own templates, and with a second implementation.

The published templates, as NAME.jinja in the directory that FATHOM_PUBLISHED_TEMPLATES names, take
the second implementation's place where they are there.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import CheckpointError, ConfigError, RequestError
from fathom.text.chat import TEMPLATES, choose_template, encode_chat, render_chat
from fathom.text.segments import PromptBuilder, Segment, encode_segments
from fathom.text.tokenizer import Tokenizer
from tests.text import reference_templates
from tests.text.profile import examples
from tests.text.record_prompts import DATA, call
from tests.text.tiny_tokenizer import HIDDEN, write_tokenizer

DEEPSEEK = [name for name in TEMPLATES if name not in reference_templates.WITHOUT_TOOLS]
PUBLISHED = json.loads(DATA.read_text(encoding="utf-8"))
TEXT = st.lists(
    st.sampled_from(["hi", "你好", " ", "\n", "</think>", "<think>", "<｜User｜>", "a{b}", "1"]),
    max_size=5,
).map("".join)
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Météo of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Users and assistants in turn, with rounds of tool calls and system messages anywhere."""
    messages: list[dict[str, Any]] = []

    def system(chance: int) -> None:
        if draw(st.integers(0, chance)) == 0:
            messages.append({"role": "system", "content": draw(TEXT)})

    system(1)
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        system(8)
        for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
            texts = draw(st.lists(TEXT, min_size=1, max_size=3))
            calls = [call(f"f{i}", json.dumps({"x": text})) for i, text in enumerate(texts)]
            content = draw(st.one_of(st.none(), TEXT))
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
            messages.extend(
                {"role": "tool", "tool_call_id": "c", "content": draw(TEXT)} for _ in calls
            )
        if draw(st.booleans()):
            messages.append({"role": "assistant", "content": draw(TEXT)})
    return messages


def spelled(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def without_tools(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [m for m in messages if m["role"] != "tool" and "tool_calls" not in m]


def is_repaired(name: str, messages: list[dict[str, Any]]) -> bool:
    """Whether the published template breaks its own markup here, and fathom's does not."""
    rounds = [m for m in messages if "tool_calls" in m]
    if name in ("deepseek-v2.5", "deepseek-r1-distill"):
        is_whole = all(m["content"] is None and len(m["tool_calls"]) == 2 for m in rounds)
        return len(rounds) > 1 or not is_whole
    return name in ("deepseek-v3", "deepseek-r1") and len(rounds) > 1


@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=str)
def test_prompts_equal_those_of_the_published_templates(case: dict[str, Any]) -> None:
    name, messages = case["template"], PUBLISHED["conversations"][case["conversation"]]
    if name == "deepseek-v2" and without_tools(messages) != messages:
        return  # its template leaves tools out; here they are refused
    segments = render_chat(
        TEMPLATES[name],
        messages,
        thinking=case.get("thinking"),
        add_generation_prompt=case["generate"],
    )
    assert (spelled(segments) == case["prompt"]) != is_repaired(name, messages)


def published(name: str, messages: list[dict[str, Any]], generate: bool, thinking: object) -> str:
    """What the published template says where it can be read, else the second implementation."""
    directory = os.environ.get("FATHOM_PUBLISHED_TEMPLATES")
    path = Path(directory or "") / f"{name}.jinja"
    has_no_text = any(m["content"] is None for m in messages) and name == "deepseek-r1-0528"
    if directory and path.exists() and not is_repaired(name, messages) and not has_no_text:
        asked = {} if thinking is None else {"thinking": bool(thinking)}
        return reference_templates.render_published(
            path.read_text(encoding="utf-8"), messages, generate, **asked
        )
    return reference_templates.render(name, messages, generate=generate, thinking=bool(thinking))


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations(), generate=st.booleans(), thinking=st.booleans())
@settings(max_examples=examples(60), deadline=None)
def test_prompts_equal_the_reference(
    name: str, messages: list[dict[str, Any]], generate: bool, thinking: bool
) -> None:
    asked = thinking if name == "deepseek-v3.1" else None
    if name in reference_templates.WITHOUT_TOOLS:
        messages = without_tools(messages)
    segments = render_chat(
        TEMPLATES[name], messages, thinking=asked, add_generation_prompt=generate
    )
    assert spelled(segments) == published(name, messages, generate, asked)


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations())
@settings(max_examples=30, deadline=None)
def test_text_never_becomes_a_control_token(
    tokenizer: Tokenizer, name: str, messages: list[dict[str, Any]]
) -> None:
    """The control ids in a prompt are those of the same conversation with innocent text."""
    if name in reference_templates.WITHOUT_TOOLS:
        messages = without_tools(messages)

    def innocent(message: dict[str, Any]) -> dict[str, Any]:
        return message if message["content"] is None else message | {"content": "x"}

    def control(conversation: list[dict[str, Any]]) -> list[int]:
        ids = encode_chat(tokenizer, TEMPLATES[name], conversation)
        return [i for i in ids if i in tokenizer.special_ids.values()]

    assert control(messages) == control([innocent(message) for message in messages])


@functools.cache
def tokenizer_of(name: str) -> tuple[Tokenizer, tuple[str, ...]]:
    """A tokenizer with every special token of the generation's, and their names."""
    table = json.loads(Path(__file__).with_name("special_tokens.json").read_text(encoding="utf-8"))
    kind = {"deepseek-v2.5": "deepseek-coder-v2", "plain": "deepseek-v2"}.get(name, name)
    tokens = list(table.get(kind, ()))
    if kind.startswith(("deepseek-v3", "deepseek-r1")) and kind != "deepseek-r1-distill":
        tokens = [*table["deepseek-v3"], *table["deepseek-v3.1"]]
    shown = tuple(token for token in tokens if token not in HIDDEN)
    with tempfile.TemporaryDirectory() as path:
        return Tokenizer.load(write_tokenizer(Path(path), shown=shown)), tuple(tokens)


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_in_every_place_stay_text(name: str) -> None:
    """Every one of the generation's tokenizer, alone, in parts and run together."""
    tokenizer, tokens = tokenizer_of(name)
    assert set(tokens) <= set(tokenizer.special_ids)

    def ids(text: str) -> list[int]:
        tool = {"type": "function", "function": {"name": f"f{text}", "description": text}}
        conversation = [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "tool_calls": [call(f"f{text}", f'"{text}"')]},
            {"role": "tool", "content": text},
            {"role": "assistant", "content": text, "reasoning_content": text},
            {"role": "user", "content": text},
        ]
        has_tools = name in DEEPSEEK
        found = encode_chat(
            tokenizer,
            TEMPLATES[name],
            conversation if has_tools else without_tools(conversation),
            tools=[tool] if has_tools else None,
        )
        return [i for i in found if i in tokenizer.special_ids.values()]

    for token in (*tokens, "".join(tokens), *(f"<{token}>" for token in tokens)):
        assert ids(token) == ids("x"), token


@pytest.mark.parametrize("name", TEMPLATES)
def test_encoding_equals_the_spelled_prompt(tokenizer: Tokenizer, name: str) -> None:
    """Text between two control tokens is encoded as one, as the library does."""
    messages = [
        {"role": "system", "content": "The quick brown fox"},
        {"role": "user", "content": "quick brown"},
        {"role": "assistant", "content": "jumps"},
        {"role": "user", "content": "lazy"},
    ]
    tools = [WEATHER] if name in DEEPSEEK else None
    segments = render_chat(TEMPLATES[name], messages, tools=tools)
    expected = tokenizer.encode(spelled(segments), special=True)
    assert encode_segments(tokenizer, segments) == expected
    assert encode_chat(tokenizer, TEMPLATES[name], messages, tools=tools) == expected


@pytest.mark.parametrize(
    ("name", "thinking", "ending"),
    [
        ("deepseek-v3", None, "<｜Assistant｜>"),
        ("deepseek-v3-0324", None, "<｜Assistant｜>"),
        ("deepseek-r1", None, "<｜Assistant｜><think>\n"),
        ("deepseek-r1-0528", None, "<｜Assistant｜>"),
        ("deepseek-v3.1", None, "<｜Assistant｜></think>"),
        ("deepseek-v3.1", False, "<｜Assistant｜></think>"),
        ("deepseek-v3.1", True, "<｜Assistant｜><think>"),
    ],
)
def test_first_turn(name: str, thinking: bool | None, ending: str) -> None:
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": "U"}]
    segments = render_chat(TEMPLATES[name], messages, thinking=thinking)
    assert spelled(segments) == f"{BOS}S<｜User｜>U{ending}"


def test_plain_is_v2s_format_in_words(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]
    segments = render_chat(TEMPLATES["plain"], messages)
    assert spelled(segments) == f"{BOS}S\n\nUser: U\n\nAssistant: A{EOS}User: V\n\nAssistant:"
    for tools, extra in (([WEATHER], []), (None, [{"role": "tool", "content": "x"}])):
        with pytest.raises(RequestError, match="no form for tools"):
            render_chat(TEMPLATES["plain"], messages + extra, tools=tools)


def test_tools_block_of_v31() -> None:
    messages = [{"role": "user", "content": "U"}]
    function = WEATHER["function"]
    assert isinstance(function, dict)
    block = reference_templates.tools_block(
        function["name"], function["description"], function["parameters"]
    )
    segments = render_chat(TEMPLATES["deepseek-v3.1"], messages, tools=[WEATHER])
    assert spelled(segments) == f"{BOS}{block}<｜User｜>U<｜Assistant｜></think>"


def test_tools_block_of_v3_shows_a_fenced_call() -> None:
    messages = [{"role": "user", "content": "U"}]
    prompt = spelled(render_chat(TEMPLATES["deepseek-v3-0324"], messages, tools=[WEATHER]))
    fenced = "<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```<｜tool▁call▁end｜>"
    assert f"<｜tool▁call▁begin｜>function{fenced}" in prompt
    assert "### weather\nDescription: Météo of a city\n" in prompt


@pytest.mark.parametrize(
    ("name", "message", "thinking", "ending"),
    [
        ("deepseek-v3", {"content": "A"}, None, "<｜Assistant｜>A"),
        ("deepseek-v3-0324", {"content": "A"}, None, "<｜Assistant｜>A"),
        ("deepseek-v3.1", {"content": "A"}, None, "<｜Assistant｜></think>A"),
        ("deepseek-v3.1", {"content": "A"}, True, "<｜Assistant｜><think>A"),
        (
            "deepseek-v3.1",
            {"content": "A", "reasoning_content": "R"},
            True,
            "<｜Assistant｜><think>R</think>A",
        ),
        (
            "deepseek-v3.1",
            {"content": "", "reasoning": "R"},
            True,
            "<｜Assistant｜><think>R",
        ),
        ("deepseek-r1", {"content": "A"}, None, "<｜Assistant｜>A"),
        (
            "deepseek-r1",
            {"content": "A", "reasoning_content": "R"},
            None,
            "<｜Assistant｜><think>\nR\n</think>\n\nA",
        ),
        ("plain", {"content": "A"}, None, "\n\nAssistant: A"),
    ],
)
def test_final_message_is_continued(
    name: str, message: dict[str, str], thinking: bool | None, ending: str
) -> None:
    start = [{"role": "user", "content": "U"}]
    message = {"role": "assistant"} | message
    template = TEMPLATES[name]
    marked = render_chat(template, [*start, message | {"prefix": True}], thinking=thinking)
    asked = render_chat(template, [*start, message], thinking=thinking, continue_final_message=True)
    assert spelled(asked) == spelled(marked)
    assert spelled(asked).endswith(f"U{ending}")


@pytest.mark.parametrize(
    ("name", "thinking", "is_inside"),
    [
        ("deepseek-v3", None, False),
        ("deepseek-r1", None, True),
        ("deepseek-r1-0528", None, False),
        ("deepseek-v3.1", False, False),
        ("deepseek-v3.1", True, True),
    ],
)
def test_output_format_knows_whether_reasoning_is_open(
    tokenizer: Tokenizer, name: str, thinking: bool | None, is_inside: bool
) -> None:
    template = TEMPLATES[name]
    messages = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "R</think>A"},
        {"role": "user", "content": "say <think>"},
    ]
    ids = encode_chat(tokenizer, template, messages, thinking=thinking)
    found = template.output_format(tokenizer, ids, reads_tools=True)
    assert found.starts_inside == is_inside
    assert found.splits_reasoning == (template.reasons != "never")
    assert found.tools == template.tool_format
    assert template.output_format(tokenizer, ids, reads_tools=False).tools is None


@pytest.mark.parametrize(
    ("jinja", "name"),
    [
        (None, "plain"),
        ("", "plain"),
        ("{{ 'User: ' + x }}{{ 'Assistant:' }}", "deepseek-v2"),
        ("'<｜User｜>' '<｜Assistant｜>' ns.is_first", "deepseek-v2.5"),
        ("'<｜User｜>' '<｜Assistant｜>' ns.is_first_sp", "deepseek-v3"),
        ("ns.is_last_user '<｜Assistant｜>'", "deepseek-v3-0324"),
        ("is_first_sp '</think>' in content '<｜Assistant｜><think>\\n'", "deepseek-r1"),
        ("'</think>' in content '<｜Assistant｜><think>\\n'", "deepseek-r1-distill"),
        ("ns.is_last_user '</think>' '<｜Assistant｜>'", "deepseek-r1-0528"),
        ("ns.is_last_user thinking '<｜Assistant｜></think>'", "deepseek-v3.1"),
        ("<|im_start|>", "unknown"),
        ([{"name": "default", "template": "'<｜Assistant｜>'"}], "deepseek-v2.5"),
    ],
)
def test_template_is_recognised(jinja: object, name: str) -> None:
    assert choose_template({"chat_template": jinja}).name == name
    assert choose_template({"chat_template": jinja}, "deepseek-r1").name == "deepseek-r1"


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ([], "plain"),
        (["<｜User｜>"], "plain"),
        (["<｜User｜>", "<｜Assistant｜>"], "deepseek-v3"),
        (["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], "deepseek-v3.1"),
    ],
)
def test_without_a_template_the_control_tokens_decide(tokens: list[str], name: str) -> None:
    added = {str(index): {"content": token} for index, token in enumerate(tokens)}
    assert choose_template({"added_tokens_decoder": added}).name == name


def test_tokenizer_files_are_enough_to_choose(
    tokenizer: Tokenizer, bare_tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    assert choose_template(tokenizer.config).name == "deepseek-v3.1"
    assert choose_template(bare_tokenizer.config).name == "deepseek-v3"
    path = shutil.copytree(checkpoint, tmp_path / "copy")
    (path / "chat_template.jinja").write_text("ns.is_last_user '<｜Assistant｜>'", encoding="utf-8")
    assert choose_template(Tokenizer.load(path).config).name == "deepseek-v3-0324"


def test_r1s_first_template_leaves_the_opening_to_the_model() -> None:
    template = choose_template({"chat_template": "is_first_sp '</think>' '<｜Assistant｜>'"})
    assert template.name == "deepseek-r1"
    assert template.reasons == "always"
    prompt = spelled(render_chat(template, [{"role": "user", "content": "U"}]))
    assert prompt == f"{BOS}<｜User｜>U<｜Assistant｜>"


def test_template_names_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"deepseek-v3\.1"):
        choose_template({}, "deepseek-v9")


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("deepseek-v3", {"thinking": True}, "thinking cannot be on"),
        ("deepseek-r1", {"thinking": False}, "thinking cannot be off"),
        ("plain", {"thinking": True}, "thinking cannot be on"),
        ("deepseek-v3.1", {"continue_final_message": True}, "no message to continue"),
    ],
)
def test_what_a_template_cannot_do_is_refused(
    name: str, arguments: dict[str, bool], match: str
) -> None:
    with pytest.raises(RequestError, match=match):
        render_chat(TEMPLATES[name], [{"role": "user", "content": "U"}], **arguments)  # type: ignore[arg-type]


def test_generation_prompt_and_continuation_exclude_each_other() -> None:
    messages = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(RequestError, match="exclude each other"):
        render_chat(
            TEMPLATES["deepseek-v3"],
            messages,
            add_generation_prompt=True,
            continue_final_message=True,
        )


def test_unknown_template_refuses_chat() -> None:
    template = choose_template({"chat_template": "<|im_start|>"})
    with pytest.raises(RequestError, match="none that fathom knows"):
        render_chat(template, [{"role": "user", "content": "U"}])


def test_tokenizer_without_the_template_s_tokens_is_named(tokenizer: Tokenizer) -> None:
    segments = (Segment("<｜Nobody｜>", is_control=True),)
    with pytest.raises(CheckpointError, match="<｜Nobody｜>"):
        encode_segments(tokenizer, segments)


def test_neighbouring_text_is_one_segment() -> None:
    built = PromptBuilder().text("a").text("b", "c").control("<x>", "<y>").text("").text("d")
    marks = [(segment.text, segment.is_control) for segment in built.segments()]
    assert marks == [("abc", False), ("<x>", True), ("<y>", True), ("d", False)]
