"""The prompt formats: one table for each generation, and which one a checkpoint has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fathom.errors import ConfigError, RequestError
from fathom.text.channels import OutputFormat
from fathom.text.markers import CALL_BEGIN, END_THINK, THINK
from fathom.text.render import V3Style
from fathom.text.segments import ASSISTANT, USER
from fathom.text.tokenizer import Tokenizer
from fathom.text.tools import ToolFormat

if TYPE_CHECKING:
    from fathom.text.jinja import JinjaTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A prompt format. `reasons`: whether its models think before they answer, never, always, or
    when asked to. `tool_format` None: it cannot express tools."""

    name: str
    family: Literal["v3", "v3.1", "plain", "jinja", "unknown"]
    reasons: Literal["never", "always", "asked"] = "never"
    tool_format: ToolFormat | None = None
    style: V3Style = field(default_factory=V3Style)
    jinja: JinjaTemplate | None = None

    def thinking_mode(self, thinking: bool | None, param: str = "thinking") -> bool:
        """Whether the model will think, where a request asks for `thinking` (None: the default)
        in its field `param`.

        Raises: RequestError where the model cannot do what is asked.
        """
        if thinking is None or self.reasons == "asked":
            return self.reasons == "always" if thinking is None else thinking
        if thinking == (self.reasons == "always"):
            return thinking
        raise RequestError(
            f"{param} cannot be {'on' if thinking else 'off'} with the {self.name} template",
            param=param,
            code="unsupported_value",
            wanted=f"{'off' if thinking else 'on'}, or nothing: these models {self.reasons} reason",
        )

    def output_format(
        self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...], *, reads_tools: bool
    ) -> OutputFormat:
        """How to read the answer to `prompt_ids`; `reads_tools` where the request offers tools."""
        splits = self.reasons != "never"
        is_inside = splits and _ends_inside_reasoning(tokenizer, prompt_ids)
        return OutputFormat(
            splits_reasoning=splits,
            starts_inside=is_inside,
            starts_after=splits and prompt_ids[-1] == tokenizer.special_ids.get(END_THINK),
            opens_reasoning=self.reasons == "always"
            and prompt_ids[-1] == tokenizer.special_ids.get(ASSISTANT),
            tools=self.tool_format if reads_tools else None,
            may_call=self.tool_format is not None,
        )


_V3 = V3Style(between_results="")
_V3_0324 = V3Style(closes_user=True)
_R1 = V3Style(drops_reasoning="answers", opens_reasoning=True, between_results="")
_DISTILL = V3Style(drops_reasoning="answers", opens_reasoning=True, one_system=True)


def _fenced(name: str, style: V3Style, reasons: Literal["never", "always"]) -> ChatTemplate:
    return ChatTemplate(name=name, family="v3", reasons=reasons, tool_format="fenced", style=style)


TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template
    for template in (
        ChatTemplate(name="deepseek-v2", family="plain"),
        ChatTemplate(name="deepseek-coder-v2", family="plain"),
        _fenced("deepseek-v2.5", V3Style(one_system=True), "never"),
        _fenced("deepseek-v3", _V3, "never"),
        _fenced("deepseek-v3-0324", _V3_0324, "never"),
        _fenced("deepseek-r1", _R1, "always"),
        _fenced("deepseek-r1-0528", replace(_V3_0324, drops_reasoning="any"), "always"),
        _fenced("deepseek-r1-distill", _DISTILL, "always"),  # on Qwen2 and on Llama
        ChatTemplate(name="deepseek-v3.1", family="v3.1", reasons="asked", tool_format="bare"),
        ChatTemplate(name="plain", family="plain"),
    )
}
UNKNOWN = ChatTemplate(name="unknown", family="unknown")


def choose_template(
    tokenizer_config: Mapping[str, object],
    name: str | None = None,
    specials: Iterable[str] = (),
) -> ChatTemplate:
    """The template called `name` (or in the file of that name, in Jinja; `specials` are then the
    tokenizer's control tokens), or the one that the checkpoint's own chat template is.

    A checkpoint without a chat template gets the one that its control tokens fit (`deepseek-v3.1`
    with `<think>`, `deepseek-v3` without), or `plain`; one with a template that is none of
    DeepSeek's gets `unknown`, with which chat is refused and completions work.
    Raises: ConfigError for an unknown name, or a file that holds no template.
    """
    if name is not None:
        found = TEMPLATES.get(name)
        return found or _from_file(name, tokenizer_config, specials)
    jinja = _jinja(tokenizer_config.get("chat_template"))
    if not jinja:
        return TEMPLATES[_by_tokens(tokenizer_config.get("added_tokens_decoder"))]
    return _recognise(jinja)


def _recognise(jinja: str) -> ChatTemplate:
    """Which of DeepSeek's a checkpoint's own template is, by what only that one holds."""
    if ASSISTANT not in jinja:
        is_v2 = "'User: '" in jinja and "'Assistant:'" in jinja
        return TEMPLATES["deepseek-v2"] if is_v2 else UNKNOWN
    has_end = END_THINK in jinja
    if has_end and "thinking" in jinja:
        return TEMPLATES["deepseek-v3.1"]
    if "is_last_user" in jinja:
        return TEMPLATES["deepseek-r1-0528" if has_end else "deepseek-v3-0324"]
    is_first = "is_first_sp" not in jinja  # V2.5's, which the distillations inherit
    if not has_end and THINK not in jinja:
        return TEMPLATES["deepseek-v2.5" if is_first else "deepseek-v3"]
    found = TEMPLATES["deepseek-r1-distill" if is_first else "deepseek-r1"]
    if THINK in jinja:
        return found
    # At first it was left to the model to open its reasoning.
    return replace(found, style=replace(found.style, opens_reasoning=False))


def _from_file(
    name: str, tokenizer_config: Mapping[str, object], specials: Iterable[str]
) -> ChatTemplate:
    """What a template in Jinja can do is told by the words in it."""
    from fathom.text.jinja import JinjaTemplate  # needed by few, takes a while

    try:
        source = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        wanted = f"a file in Jinja, or one of {', '.join(TEMPLATES)}"
        raise ConfigError("--chat-template", found=f"{name!r}: {error}", wanted=wanted) from None
    named = (tokenizer_config.get(f"{kind}_token") for kind in ("bos", "eos"))
    bos, eos = (
        str(token.get("content") if isinstance(token, dict) else token or "") for token in named
    )
    reasons: Literal["never", "always", "asked"] = "never"
    if END_THINK in source:
        reasons = "asked" if "thinking" in source else "always"
    form: ToolFormat = "fenced" if "```json" in source else "bare"
    return ChatTemplate(
        name=name,
        family="jinja",
        reasons=reasons,
        tool_format=form if CALL_BEGIN in source else None,
        jinja=JinjaTemplate(source, specials=specials, bos=bos, eos=eos),
    )


def _jinja(raw: object) -> str:
    """The template's text; of several named ones, the default."""
    if isinstance(raw, list):
        named = {
            entry.get("name"): entry.get("template") for entry in raw if isinstance(entry, dict)
        }
        raw = named.get("default")
    return raw if isinstance(raw, str) else ""


def _by_tokens(added: object) -> str:
    """The template whose control tokens are among transformers' `added_tokens_decoder`."""
    entries = added.values() if isinstance(added, dict) else ()
    tokens = {entry.get("content") for entry in entries if isinstance(entry, dict)}
    if not {USER, ASSISTANT} <= tokens:
        return "plain"
    return "deepseek-v3.1" if {THINK, END_THINK} <= tokens else "deepseek-v3"


def _ends_inside_reasoning(tokenizer: Tokenizer, prompt_ids: tuple[int, ...]) -> bool:
    """Whether the prompt has opened reasoning and not closed it. User text cannot pretend so:
    it holds no control ids."""
    start, end = (tokenizer.special_ids.get(marker) for marker in (THINK, END_THINK))
    if start is None or end is None:  # spelled as text, at the very end of the prompt
        return tokenizer.decode(prompt_ids[-64:]).rstrip().endswith(THINK)
    for token_id in reversed(prompt_ids):
        if token_id in (start, end):
            return token_id == start
    return False
