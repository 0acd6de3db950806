"""The one form that every dialect brings a conversation to, and its way to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fathom.core.types import ReasoningLimit, SamplingParams
from fathom.engine.requests import GenerateRequest, Unrendered
from fathom.errors import ContextLengthError, RequestError, not_valid
from fathom.server.forms import ToolChoice
from fathom.server.limits import RequestLimits
from fathom.server.state import ServedModel
from fathom.server.thinking import Thinking
from fathom.text.channels import OutputFormat
from fathom.text.chat import ChatTemplate, encode_chat
from fathom.text.grammar.asked import ToolRules
from fathom.text.markers import END_THINK, THINK
from fathom.text.messages import parse_messages, parse_tools
from fathom.text.results import in_call_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation. `messages` and `tools` in OpenAI's form, checked by `text.messages`;
    `sampling.max_tokens` None means up to the context. `tool_choice`: what calls are wanted.
    `num_kept`: how many tokens of the prompt, its last ones, the model gets; `last_ids`."""

    id: str
    messages: list[dict[str, Any]]
    sampling: SamplingParams
    tools: list[dict[str, Any]] | None = None
    thinking: Thinking = field(default_factory=Thinking)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    cache_salt: str = ""
    priority: int = 0
    num_kept: int | None = None
    tool_choice: ToolChoice = field(default_factory=ToolChoice)

    def prompt_ids(self, model: ServedModel, limits: RequestLimits) -> tuple[int, ...]:
        """The prompt as tokens. Raises: RequestError naming the field at fault."""
        limits.check("max_tools", "tools", len(self.tools or ()))
        return encode_chat(
            model.tokenizer,
            model.template,
            self.messages,
            tools=self.tools,
            thinking=self.thinking.mode(model.template),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )

    def request(self, model: ServedModel, limits: RequestLimits) -> GenerateRequest:
        """From text to tokens. Raises: RequestError naming the field at fault."""
        if not model.is_rendered_here:
            if self.num_kept is not None:
                model.tokenizer.require("truncate_prompt_tokens")
            return self._unrendered(model, limits)
        prompt_ids = self.prompt_ids(model, limits)
        format = model.template.output_format(
            model.tokenizer, prompt_ids, reads_tools=self.tools is not None
        )
        sampling = limited(self.sampling, self.thinking.budget, model, format)
        prompt_ids = last_ids(prompt_ids, self.num_kept, sampling, model.plan.max_model_len)
        return GenerateRequest(
            id=self.id,
            prompt_ids=prompt_ids,
            sampling=fit_context(sampling, len(prompt_ids), model.plan.max_model_len, "messages"),
            format=format,
            cache_salt=self.cache_salt,
            priority=self.priority,
            tools=self._tool_rules(model.template, limits),
        )

    def _tool_rules(self, template: ChatTemplate, limits: RequestLimits) -> ToolRules | None:
        rules = self.tool_choice.rules(self.tools, template)
        for rule in rules.tools if rules else ():
            limits.check("max_schema_chars", rule.param, len(rule.schema or ""))
        return rules

    def _unrendered(self, model: ServedModel, limits: RequestLimits) -> GenerateRequest:
        """For an engine that renders conversations itself; checked here all the same."""
        limits.check("max_tools", "tools", len(self.tools or ()))
        continues = self.continue_final_message or parse_messages(self.messages)[-1].prefix
        parse_tools(self.tools)
        return GenerateRequest(
            id=self.id,
            prompt_ids=(),
            sampling=self.sampling,
            cache_salt=self.cache_salt,
            priority=self.priority,
            tools=self._tool_rules(model.template, limits),
            unrendered=Unrendered(
                messages=[self.messages[i] for i in in_call_order(self.messages, "messages")],
                tools=self.tools,
                thinking=self.thinking.is_on,
                budget=self.thinking.budget,
                add_generation_prompt=self.add_generation_prompt,
                continues=continues,
            ),
        )

    def thinking_echo(self, model: ServedModel) -> dict[str, Any]:
        """Whether the model thinks, as it was understood, in DeepSeek's and Anthropic's form."""
        if not model.is_rendered_here and self.thinking.is_on is None:
            return {"type": "default"}  # the upstream's
        if not self.thinking.mode(model.template):
            return {"type": "disabled"}
        budget = self.thinking.budget
        return {"type": "enabled"} | ({} if budget is None else {"budget_tokens": budget})


def limited(
    sampling: SamplingParams, budget: int | None, model: ServedModel, format: OutputFormat
) -> SamplingParams:
    """`sampling` with at most `budget` tokens of reasoning, where the answer may have any.

    Raises: RequestError where the tokenizer cannot tell.
    """
    if budget is None or not format.splits_reasoning:
        return sampling
    ids = model.tokenizer.special_ids
    begin, end = ids.get(THINK), ids.get(END_THINK)
    if begin is None or end is None:
        raise RequestError(
            "reasoning cannot be limited with this checkpoint",
            param="thinking_token_budget",
            code="unsupported_value",
            found="a tokenizer without a token for the end of reasoning",
            fix="use max_tokens",
        )
    limit = ReasoningLimit(budget, end, None if format.starts_inside else begin)
    return replace(sampling, reasoning_limit=limit)


def fit_context(
    params: SamplingParams, num_prompt: int, max_model_len: int, param: str = "prompt"
) -> SamplingParams:
    """`params` with `max_tokens` cut to the room that the prompt, field `param`, leaves.

    Raises: ContextLengthError where the prompt leaves none; RequestError for `min_tokens`.
    """
    room = max_model_len - num_prompt
    if room < 1:
        raise ContextLengthError(
            # In Anthropic's words, by which agents know that they have to shorten a conversation.
            f"prompt is too long: {num_prompt} tokens > {max_model_len - 1} maximum",
            param=param,
            wanted=f"room for one token to follow: the context is {max_model_len} tokens",
            fix="shorten the prompt, or start the server with a larger --max-model-len",
        )
    if params.min_tokens > room:
        raise RequestError(
            "min_tokens does not fit the context",
            param="min_tokens",
            found=str(params.min_tokens),
            wanted=f"at most {room}, what the prompt leaves",
        )
    asked = room if params.max_tokens is None else params.max_tokens
    return replace(params, max_tokens=min(asked, room))


def last_ids(
    ids: tuple[int, ...], num_kept: int | None, params: SamplingParams, max_model_len: int
) -> tuple[int, ...]:
    """vLLM's `truncate_prompt_tokens`: the last `num_kept` tokens; all for None; for -1, as many
    as leave room in the context for `max_tokens`, or for one.

    Raises: RequestError.
    """
    if num_kept is None:
        return ids
    if num_kept == -1:
        num_kept = max(max_model_len - (params.max_tokens or 1), 1)
    if num_kept < 1:
        wanted = "1 or more, or -1 for what fits"
        raise not_valid("truncate_prompt_tokens", found=str(num_kept), wanted=wanted)
    return ids[-num_kept:]
