"""What restricts an answer, as plain data: the form, the calls, and where the reasoning ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.core.types import StructuredOutputs
from fathom.text.channels import OutputFormat
from fathom.text.tools import ToolFormat

Reasoning = Literal["none", "inside", "opens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRule:
    """A tool that may be called. `schema` is the text of its arguments' schema, which holds where
    `is_strict`, and else as far as it can be enforced; None: any object. `param`: its field."""

    name: str
    schema: str | None = None
    is_strict: bool = False
    param: str = "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRules:
    """Calls that an answer may make; `must_call` leaves it nothing else, `is_single` one call."""

    tools: tuple[ToolRule, ...]
    format: ToolFormat
    must_call: bool = False
    is_single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Everything that restricts one answer. `reasoning`: whether the answer starts inside it, must
    open it first, or has none; there everything goes."""

    form: StructuredOutputs | None = None
    tools: ToolRules | None = None
    reasoning: Reasoning = "none"

    @property
    def field(self) -> str:
        """The request's field to blame."""
        return self.form.field if self.form is not None else "tools"

    @classmethod
    def of(
        cls, form: StructuredOutputs | None, tools: ToolRules | None, format: OutputFormat
    ) -> Asked | None:
        """What binds an answer that is read as `format`; None where nothing does."""
        binds = tools is not None and (tools.must_call or any(t.is_strict for t in tools.tools))
        if form is None and not binds:
            return None
        reasoning: Reasoning = "none"
        if format.splits_reasoning:
            reasoning = "inside" if format.starts_inside else "none"
            reasoning = "opens" if format.opens_reasoning else reasoning
        return cls(form=form, tools=tools, reasoning=reasoning)
