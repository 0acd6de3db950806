"""The offline engine: `LLM(...).generate(prompts, SamplingParams(...))`, in this process.

The names of arguments and results are vLLM's.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import os
import reprlib
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

from fathom.config import EngineConfig
from fathom.core.admission import token_limit
from fathom.core.types import SamplingParams
from fathom.engine.batch import BatchRun, Job
from fathom.engine.limits import check_request
from fathom.engine.loading import load
from fathom.engine.progress import ProgressBar
from fathom.engine.prompts import (
    Prompt,
    as_conversations,
    as_prompts,
    encode_one,
    naming,
)
from fathom.engine.requests import GenerateRequest, SeedSource, split
from fathom.engine.results import Choice, RequestOutput, positions
from fathom.engine.text_side import load_text
from fathom.errors import ConfigError, EngineError, RequestError
from fathom.spec.plan import DeploymentPlan
from fathom.text.channels import OutputFormat
from fathom.text.chat import asked_thinking, encode_chat
from fathom.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fathom.text.grammar.engine import GrammarEngine

_log = logging.getLogger(__name__)


class LLM:
    """A model in this process. Use it as a context manager, or call `close`.

    `settings` are the further fields of `EngineConfig`: `block_size`, `device`, and so on.
    Raises: ConfigError for an unknown argument; CheckpointError; CapacityError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        if trust_remote_code:
            _log.info("trust_remote_code has no effect: fathom runs no code from a checkpoint")
        config = _config(
            {
                "model": None if model is None else os.fspath(model),
                "tokenizer": None if tokenizer is None else os.fspath(tokenizer),
                "tensor_parallel_size": tensor_parallel_size,
                "dtype": dtype,
                "kv_cache_dtype": kv_cache_dtype,
                "max_model_len": max_model_len,
                "gpu_memory_utilization": gpu_memory_utilization,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
                "seed": seed,
                **settings,
            }
        )
        self._text = load_text(config)
        self._resources = ExitStack()
        self._loaded = self._resources.enter_context(load(config, _log_progress))
        self._seeds = SeedSource(config.seed)
        self._grammars: GrammarEngine | None = None
        self._counter = itertools.count()
        self._is_closed = False

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the device; idempotent."""
        self._is_closed = True
        self._resources.close()

    @property
    def plan(self) -> DeploymentPlan:
        """What runs, with a reason for every setting."""
        return self._loaded.plan

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._text.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's own generation_config.json asks for, vLLM's defaults otherwise."""
        return self._text.defaults

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts: one text, one list of token ids, one
        `{"prompt": ...}` or `{"prompt_token_ids": ...}`, or a list of any of these.

        `use_tqdm` False hides the bar that a terminal would show.
        Raises: RequestError before anything runs, naming the index of the prompt that is wrong;
        EngineError where a step fails.
        """
        listed = as_prompts(prompts)
        texts: list[str | None] = []
        encoded: list[tuple[int, ...]] = []
        for index, prompt in enumerate(listed):
            with naming("prompts", index):
                text, ids = encode_one(self._text.tokenizer, prompt)
            texts.append(text)
            encoded.append(ids)
        formats = [OutputFormat()] * len(encoded)
        return self._run("prompts", texts, encoded, formats, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation or to each of several, by the model's chat template.

        The text is as the model wrote it, reasoning and tool calls included; `structured_outputs`
        bind what follows the reasoning.
        `chat_template_kwargs` knows `thinking` (also `enable_thinking`), true or false.
        Raises: as `generate`.
        """
        thinking = asked_thinking(chat_template_kwargs or {})
        texts: list[str | None] = []
        encoded: list[tuple[int, ...]] = []
        for index, conversation in enumerate(as_conversations(messages)):
            with naming("conversations", index):
                ids = encode_chat(
                    self._text.tokenizer,
                    self._text.template,
                    conversation,
                    tools=tools,
                    thinking=thinking,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                )
            texts.append(self._text.tokenizer.decode(ids))
            encoded.append(ids)
        formats = [
            self._text.template.output_format(self._text.tokenizer, ids, reads_tools=False)
            for ids in encoded
        ]
        return self._run("conversations", texts, encoded, formats, sampling_params, use_tqdm)

    def _run(
        self,
        what: str,
        texts: Sequence[str | None],
        encoded: Sequence[tuple[int, ...]],
        formats: Sequence[OutputFormat],
        asked: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        """Check everything, then run it."""
        if self._is_closed:
            raise EngineError("this LLM is closed", fix="make another one")
        jobs = []
        for index, (ids, sampling) in enumerate(
            zip(encoded, self._samplings(asked, len(encoded)), strict=True)
        ):
            with naming(what, index):
                jobs.append(self._job(ids, sampling, formats[index]))
        bar = ProgressBar(len(jobs), sys.stderr, is_wanted=use_tqdm)
        try:
            BatchRun(self._loaded.core, jobs).run(bar)
        finally:
            bar.close()
        return [_output(job, text) for job, text in zip(jobs, texts, strict=True)]

    def _samplings(
        self, asked: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if asked is None or isinstance(asked, SamplingParams):
            return [asked or self._text.defaults] * count
        is_list = isinstance(asked, Sequence) and all(
            isinstance(one, SamplingParams) for one in asked
        )
        if not is_list or len(asked) != count:
            raise RequestError(
                "sampling_params is not valid",
                param="sampling_params",
                found=f"{len(asked)} for {count} prompts" if is_list else reprlib.repr(asked),
                wanted="one SamplingParams for all prompts, or one for each",
            )
        return list(asked)

    def _job(self, ids: tuple[int, ...], sampling: SamplingParams, format: OutputFormat) -> Job:
        tokenizer, plan = self._text.tokenizer, self._loaded.plan
        check_request(ids, sampling, tokenizer)
        request = GenerateRequest(
            id=str(next(self._counter)), prompt_ids=ids, sampling=sampling, format=format
        )
        sequences = split(
            request,
            seed=self._seeds.draw() if sampling.seed is None else sampling.seed,
            eos_ids=tokenizer.eos_ids,
            arrival_s=time.monotonic(),
        )
        token_limit(sequences[0], max_model_len=plan.max_model_len, pool_tokens=plan.kv_tokens)
        choices = [Choice.begin(tokenizer, sampling, index) for index in range(sampling.n)]
        if request.asked is None:
            return Job(sequences, choices)
        grammars = self._grammar_engine()
        grammar = grammars.check(request.asked)
        return Job(sequences, choices, lambda: grammars.constraint(grammar))

    def _grammar_engine(self) -> GrammarEngine:
        if self._grammars is None:
            from fathom.text.grammar.engine import GrammarEngine

            self._grammars = GrammarEngine(self._text.tokenizer)
        return self._grammars


def _output(job: Job, text: str | None) -> RequestOutput:
    first, request = job.choices[0], job.sequences[0]
    scored = None
    if request.sampling.prompt_logprobs is not None:
        scored = [None, *positions(first.prompt_logprobs)]
    return RequestOutput(
        request_id=request.id.rpartition("-")[0],
        prompt=text,
        prompt_token_ids=request.prompt_ids,
        prompt_logprobs=scored,
        outputs=[choice.output() for choice in job.choices],
        finished=job.is_finished,
        num_cached_tokens=first.stream.num_cached,
    )


def _config(asked: Mapping[str, Any]) -> EngineConfig:
    """The settings with these names and values. Raises: ConfigError naming the one at fault."""
    known = sorted(item.name for item in fields(EngineConfig))
    for name in asked:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"LLM has no argument {name}",
                found=f"{name}={asked[name]!r}",
                wanted=f"did you mean {nearest[0]}?" if nearest else f"one of {', '.join(known)}",
            )
    try:
        return msgspec.convert(asked, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("an argument of LLM has the wrong type", found=str(error)) from error


def _log_progress(phase: str, detail: str) -> None:
    _log.info("%s %s", phase, detail)
