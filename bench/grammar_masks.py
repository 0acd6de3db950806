"""What masks cost of a decode step: computed by themselves, and beside a real forward pass.

    python -m bench.grammar_masks [--model DIR] [--tokenizer DIR] [--batch 32] [--output FILE]

For the embedded model's vocabulary, and for one of V3's size: the tokenizer in DIR, or one trained
as in bench/grammar.py. `workload`: each sequence of a batch is somewhere else in an answer to one
of five schemas; `strings`: each is inside a string whose length is bounded, where masks cost most.
Forced tokens need none.

- `alone_cpu_ms`: time of one thread for the masks of a step, and its share of a step of DeepSeek-V3
  on 8xH20 by the cost model (1,024 tokens of context each). GPUs compute while this goes on: what
  is shorter than the step costs nothing but the thread.
- `beside_ms`: decode steps of the model in DIR (v3-mini: `python -m bench.peers.checkpoint DIR`)
  whose sequences have these masks to compute, in the engine's own thread, and of sequences bound by
  masks that are there already. The masks allow everything: their vocabulary is another. Shares are
  of the tenth hundredths, for other work only ever slows a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.grammar_workload import WORKLOAD, large_tokenizer, told
from bench.ops_machine import commit
from fathom import LLM, SamplingParams
from fathom.core.types import Mask, MaskRows, StructuredOutputs
from fathom.perf.calibration import built_in
from fathom.perf.cost import cost_model
from fathom.perf.parts import Formats
from fathom.perf.shape import decode_shape
from fathom.spec.catalogue import parse_cluster
from fathom.spec.formats import FP8_BLOCK
from fathom.spec.known import find_model
from fathom.spec.parallel import Layout
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine, TokenConstraint
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path

CONTEXT = 1024
WARM = 6  # steps: the prompts, and recordings
READY = "masks that are there"
STRINGS = [
    (
        {"type": "object", "properties": {"text": {"type": "string", "maxLength": length}},
         "required": ["text"], "additionalProperties": False},
        {"text": "The quick brown fox jumps over the lazy dog, twice a day."[:length]},
    )
    for length in (24, 40, 64)
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """An answer under a grammar: the tokens before its first mask, and those after each."""

    grammar: str
    first: tuple[int, ...]
    after: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, engine: GrammarEngine, tokenizer: Tokenizer, schema: Any, value: Any) -> Script:
        """The script of an answer as the tokenizer cuts it."""
        grammar = engine.check(Asked(form=StructuredOutputs(json=json.dumps(schema))))
        constraint, ids = engine.constraint(grammar), tokenizer.encode(json.dumps(value))
        parts: list[list[int]] = [[]]
        place = 0
        while place < len(ids):
            forced = constraint.forced()
            if not forced or ids[place : place + len(forced)] != forced:
                forced = ids[place : place + 1]
                parts.append([])
            for token_id in forced:
                constraint.accept(token_id)
                assert not constraint.error, constraint.error
            parts[-1] += forced
            place += len(forced)
        first, *after = map(tuple, parts)
        return cls(grammar, first, tuple(after))


class Scripted:
    """A constraint that follows a script, over and over, whatever is sampled under its masks."""

    is_complete, error = False, ""

    def __init__(self, engine: GrammarEngine, script: Script, place: int, row: bytes) -> None:
        self._engine, self._script, self._row = engine, script, row
        self._inner = self._begun()
        self._place = 0
        for _ in range(place):
            self.accept(0)

    def _begun(self) -> TokenConstraint:
        inner = self._engine.constraint(self._script.grammar)
        for token_id in self._script.first:
            inner.accept(token_id)
        return inner

    def mask(self, drafts: Sequence[int]) -> Mask:
        """A mask that costs what the script's does, and allows everything."""
        return _Allowing(self._inner.mask(()), self._row)

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """All of them."""
        return len(tokens)

    def accept(self, token_id: int) -> None:
        """On to the next place of the script."""
        for scripted in self._script.after[self._place]:
            self._inner.accept(scripted)
        self._place += 1
        if self._place == len(self._script.after):
            self._inner, self._place = self._begun(), 0

    def forced(self) -> tuple[int, ...]:
        """Nothing."""
        return ()


class Ready:
    """A constraint whose masks are there already."""

    is_complete, error = False, ""

    def __init__(self, row: bytes) -> None:
        self._row = row

    def mask(self, drafts: Sequence[int]) -> Mask:
        """Everything."""
        return MaskRows(self._row)

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """All of them."""
        return len(tokens)

    def accept(self, token_id: int) -> None:
        """Nothing to do."""

    def forced(self) -> tuple[int, ...]:
        """Nothing."""
        return ()


class _Allowing:
    def __init__(self, mask: Mask, row: bytes) -> None:
        self._mask, self._row = mask, row

    def read(self) -> bytes:
        """The mask is computed; the row is given."""
        self._mask.read()
        return self._row


def scripted(tokenizer: Tokenizer, cases: Sequence[tuple[Any, Any]], batch: int, row: bytes) -> Any:
    """What makes the constraints of a batch, again with every call."""
    engine = GrammarEngine(tokenizer)
    scripts = [Script.of(engine, tokenizer, schema, value) for schema, value in cases]

    def make() -> list[Scripted]:
        chosen = [scripts[i % len(scripts)] for i in range(batch)]
        return [Scripted(engine, s, 7 * i % len(s.after), row) for i, s in enumerate(chosen)]

    return make


def alone_ms(make: Callable[[], list[Scripted]], rounds: int) -> list[float]:
    """Milliseconds of one thread for a step's masks; the first time around only warms up."""
    samples = []
    constraints = make()
    for _ in range(2 * rounds):
        masks = [constraint.mask(()) for constraint in constraints]
        began = time.thread_time()
        for mask in masks:
            mask.read()
        samples.append(1e3 * (time.thread_time() - began))
        for constraint in constraints:
            constraint.accept(0)
    return samples[rounds:]


def beside_ms(llm: LLM, constraints: list[Any], num_steps: int) -> list[float]:
    """Milliseconds of each decode step of a batch whose sequences have these constraints."""
    left, core, ended_s = list(constraints), llm._loaded.core, []
    plain = core.step

    def job(ids: Any, sampling: Any, format: Any) -> Any:
        made, one = LLM._job(llm, ids, sampling, format), left.pop()
        made.constrain = lambda: one
        return made

    def step(now: float) -> Any:
        events = plain(now)
        if events:
            ended_s.append(time.perf_counter())
        return events

    llm._job, core.step = job, step  # type: ignore[method-assign]
    prompts: Any = [{"prompt_token_ids": [7 * i + 1] * 16} for i in range(len(constraints))]
    sampling = SamplingParams(temperature=0.0, max_tokens=WARM + num_steps, ignore_eos=True)
    llm.generate(prompts, sampling, use_tqdm=False)
    core.step = plain  # type: ignore[method-assign]
    return [1e3 * (end - begin) for begin, end in pairwise(ended_s[WARM - 1 :])]


def v3_step_ms(batch: int) -> float:
    """A decode step of DeepSeek-V3 on 8xH20, predicted."""
    costs = cost_model(
        find_model("DeepSeek-V3").spec,
        Layout(tp=8),
        parse_cluster("8xh20-sxm-96"),
        Formats(weights=FP8_BLOCK),
        built_in(),
    )
    return 1e3 * costs.device_s(decode_shape(batch, batch * CONTEXT))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=129_280)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    step_ms = v3_step_ms(asked.batch)
    result: dict[str, Any] = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "load_average": os.getloadavg(), "python": platform.python_version()},
        "commit": commit(),
        "config": {key: Path(str(value)).name for key, value in vars(asked).items()},
        "mask_threads": 1,
        "v3_on_8xh20_step_ms": round(step_ms, 3),
        "masks": {},
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as directory,
        LLM(asked.model, ops_backend="cpu", enable_prefix_caching=False) as llm,
    ):
        row = bytes([0xFF]) * -(-llm.plan.model.vocab_size // 8)
        large = (
            Tokenizer.load(asked.tokenizer)
            if asked.tokenizer
            else large_tokenizer(Path(directory), asked.vocab_size)
        )
        makers: dict[str, Callable[[], list[Any]]] = {READY: lambda: [Ready(row)] * asked.batch}
        for tokenizer in (Tokenizer.load(embedded_path()), large):
            for name, cases in (("workload", WORKLOAD), ("strings", STRINGS)):
                make = scripted(tokenizer, cases, asked.batch, row)
                makers[f"{name}, {tokenizer.vocab_size} tokens"] = make
        beside: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(asked.repeats):  # in turns: other work on the machine slows all alike
            for name, make in makers.items():
                beside[name] += beside_ms(llm, make(), asked.steps)
    fast = {name: quantiles(samples, n=10)[0] for name, samples in beside.items()}
    result["beside_ms"] = {name: sorted(round(ms, 2) for ms in beside[name]) for name in beside}
    for name, make in makers.items():
        if name != READY:
            alone = alone_ms(make, asked.rounds)
            result["masks"][name] = {
                "alone_cpu_ms": told(alone),
                "unhidden_share_of_v3_on_8xh20": round(median(alone) / step_ms, 4),
                "unhidden_share_of_this_step": round(median(alone) / fast[READY], 4),
                "share_of_this_step": round(1 - fast[READY] / fast[name], 4),
            }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
