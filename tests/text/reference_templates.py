"""A second implementation of DeepSeek's prompt formats, as Jinja, from the model cards.

Written apart from `fathom.text.render`: it looks at each turn's predecessor and keeps no state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import jinja2

_MACROS = """
{%- macro call(c) -%}
{%- if fenced -%}
<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}
```json
{{ c.function.arguments }}
```<｜tool▁call▁end｜>
{%- else -%}
<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments -}}
<｜tool▁call▁end｜>
{%- endif -%}
{%- endmacro -%}
{%- macro calls(cs) -%}
<｜tool▁calls▁begin｜>
{%- for c in cs -%}
{{ "\n" if fenced and not loop.first }}{{ call(c) }}
{%- endfor -%}
<｜tool▁calls▁end｜><｜end▁of▁sentence｜>
{%- endmacro -%}
{%- set turns = messages | rejectattr("role", "equalto", "system") | list -%}
{%- set systems = messages | selectattr("role", "equalto", "system")
    | map(attribute="content") | list -%}
<｜begin▁of▁sentence｜>{{ (systems[-1:] if one_system else systems) | join("\n\n") }}
{%- set before = namespace(role="") -%}
"""

V31 = (
    _MACROS
    + """
{%- set opener = "<｜Assistant｜>" + ("<think>" if thinking else "</think>") -%}
{%- for m in turns -%}
{%- if m.role == "user" -%}
<｜User｜>{{ m.content }}
{%- elif m.role == "tool" -%}
<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- else -%}
{{ "<｜Assistant｜></think>" if before.role == "user" }}
{%- if m.tool_calls -%}
{{ m.content or "" }}{{ calls(m.tool_calls) }}
{%- elif before.role == "tool" -%}
{{ m.content }}<｜end▁of▁sentence｜>
{%- else -%}
{{ m.content.split("</think>", 1) | last }}<｜end▁of▁sentence｜>
{%- endif -%}
{%- endif -%}
{%- set before.role = m.role -%}
{%- endfor -%}
{{ opener if generate and before.role == "user" }}
"""
)

V3 = (
    _MACROS
    + """
{%- for m in turns -%}
{%- if m.role == "user" -%}
<｜User｜>{{ m.content }}{{ "<｜Assistant｜>" if closes_user }}
{%- elif m.role == "tool" -%}
{{ ("" if tight else "\n") if before.role == "tool" else "<｜tool▁outputs▁begin｜>" -}}
<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- else -%}
{%- if before.role == "tool" -%}
<｜tool▁outputs▁end｜>
{%- elif not closes_user -%}
<｜Assistant｜>
{%- endif -%}
{%- if m.tool_calls -%}
{{ (m.content or "").split("</think>" if drops_all else "\0") | last }}{{ calls(m.tool_calls) }}
{%- elif drops_all or drops and before.role != "tool" -%}
{{ m.content.split("</think>") | last }}<｜end▁of▁sentence｜>
{%- else -%}
{{ m.content }}<｜end▁of▁sentence｜>
{%- endif -%}
{%- endif -%}
{%- set before.role = m.role -%}
{%- endfor -%}
{%- if before.role == "tool" -%}
<｜tool▁outputs▁end｜>
{%- elif generate -%}
{{ "<｜Assistant｜>" if not (closes_user and before.role == "user") }}{{ "<think>\n" if opens }}
{%- endif -%}
"""
)

PLAIN = """
{%- set words = {"user": "User: ", "assistant": "Assistant: ", "system": ""} -%}
<｜begin▁of▁sentence｜>
{%- for m in messages -%}
{{ words[m.role] }}{{ m.content }}
{{- "<｜end▁of▁sentence｜>" if m.role == "assistant" else "\n\n" }}
{%- endfor -%}
{{ "Assistant:" if generate }}
"""

WITHOUT_TOOLS = ("deepseek-v2", "deepseek-coder-v2", "plain")
_FLAGS: dict[str, dict[str, bool]] = {
    "deepseek-v2.5": {"one_system": True},
    "deepseek-v3": {"tight": True},
    "deepseek-v3-0324": {"closes_user": True},
    "deepseek-r1": {"drops": True, "opens": True, "tight": True},
    "deepseek-r1-0528": {"drops_all": True, "closes_user": True},
    "deepseek-r1-distill": {"drops": True, "opens": True, "one_system": True},
}
_ENVIRONMENT = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)


def render(
    name: str, messages: Sequence[object], *, generate: bool, thinking: bool | None = None
) -> str:
    """The prompt text of template `name`, control tokens spelled out."""
    source = V31 if name == "deepseek-v3.1" else V3
    flags = {"fenced": source is V3} | _FLAGS.get(name, {})
    template = _ENVIRONMENT.from_string(PLAIN if name in WITHOUT_TOOLS else source)
    return template.render(messages=messages, generate=generate, thinking=thinking, **flags)


def render_published(source: str, messages: Sequence[object], generate: bool, **asked: bool) -> str:
    """The prompt of a published template, in an environment like transformers'."""
    return _ENVIRONMENT.from_string(source).render(
        messages=messages,
        add_generation_prompt=generate,
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        **asked,
    )


def tools_block(name: str, description: str, parameters: object) -> str:
    """The block that DeepSeek-V3.1's model card puts after the system prompt, for one tool."""
    schema = json.dumps(parameters, ensure_ascii=False)
    return (
        f"\n\n## Tools\nYou have access to the following tools:\n\n### {name}\n"
        f"Description: {description}\n\nParameters: {schema}\n\n"
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments"
        "<｜tool▁call▁end｜>{additional_tool_calls}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        "Schema\n- For multiple tool calls, chain them directly without separators or spaces\n"
    )
