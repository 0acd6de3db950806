"""Two grammar engines side by side, and what fathom makes of the one that it took.

    python -m bench.grammar --suite DIR [--vocab-size 129280] [--output FILE]

DIR is a version of JSON-Schema-Test-Suite, such as `json/tests/draft2020-12` in the source
distribution of the `jsonschema` package. Every schema of it is compiled, and every instance that is
JSON is offered as text, keys in the order of the schema's properties where it says one. "unsound"
are wrong instances that pass, "incomplete" right ones that do not. xgrammar is measured where it is
installed. The vocabulary is trained here, on the standard library's sources, at the size of
DeepSeek-V3's; answers are the embedded model's. bench/grammar_masks.py says what masks cost of a
step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import llguidance

from bench.grammar_workload import WORKLOAD, large_tokenizer, told
from fathom import LLM, SamplingParams
from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.text.grammar import engine as grammar_engine
from fathom.text.grammar.asked import Asked
from fathom.text.tokenizer import Tokenizer


class Walk(Protocol):
    """A compiled grammar at its start, once more with every call."""

    def accepts(self, text: str) -> bool:
        """Whether the whole text matches."""
        ...

    def masks(self, ids: list[int]) -> list[float]:
        """Microseconds of each mask along the tokens."""
        ...


Compile = Callable[[Any], Walk]


class LlguidanceWalk:
    """llguidance, by itself or behind fathom's checks."""

    def __init__(self, matcher: Any, tokenizer: Tokenizer) -> None:
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        self._matcher, self._tokenizer = matcher, tokenizer

    def accepts(self, text: str) -> bool:
        matcher = self._matcher.deep_copy()
        return bool(matcher.consume_tokens(list(self._tokenizer.encode(text)))) and bool(
            matcher.is_accepting()
        )

    def masks(self, ids: list[int]) -> list[float]:
        matcher, samples = self._matcher.deep_copy(), []
        for token_id in ids:
            began = time.perf_counter()
            matcher.compute_bitmask()
            samples.append(1e6 * (time.perf_counter() - began))
            assert matcher.consume_token(token_id)
        return samples


class XgrammarWalk:
    """xgrammar's matcher."""

    def __init__(self, xgrammar: Any, compiled: Any, eos_id: int, vocab_size: int) -> None:
        self._xgrammar, self._compiled = xgrammar, compiled
        self._eos_id, self._vocab_size = eos_id, vocab_size

    def accepts(self, text: str) -> bool:
        matcher = self._xgrammar.GrammarMatcher(self._compiled)
        return bool(matcher.accept_string(text)) and bool(matcher.accept_token(self._eos_id))

    def masks(self, ids: list[int]) -> list[float]:
        matcher, samples = self._xgrammar.GrammarMatcher(self._compiled), []
        bitmask = self._xgrammar.allocate_token_bitmask(1, self._vocab_size)
        for token_id in ids:
            began = time.perf_counter()
            matcher.fill_next_token_bitmask(bitmask)
            samples.append(1e6 * (time.perf_counter() - began))
            assert matcher.accept_token(token_id)
        return samples


def engines(tokenizer: Tokenizer) -> Iterator[tuple[str, Compile]]:
    """Each engine's compiler. fathom's refuses what llguidance would leave out."""
    fathom = grammar_engine.GrammarEngine(tokenizer)

    def by_fathom(schema: Any) -> Walk:
        form = StructuredOutputs(json=json.dumps(schema))
        constraint = fathom.constraint(fathom.check(Asked(form=form)))
        return LlguidanceWalk(constraint._matcher, tokenizer)

    def by_llguidance(schema: Any) -> Walk:
        text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(fathom._walker, text, log_level=0)
        return LlguidanceWalk(matcher, tokenizer)

    yield "fathom", by_fathom
    yield "llguidance", by_llguidance
    try:
        import xgrammar
    except ImportError:
        return
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    known = xgrammar.TokenizerInfo(
        tokens,
        xgrammar.VocabType.RAW,
        vocab_size=len(tokens),
        stop_token_ids=[tokenizer.eos_ids[0]],
    )
    compiler = xgrammar.GrammarCompiler(known, max_threads=1, cache_enabled=False)

    def by_xgrammar(schema: Any) -> Walk:
        compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        return XgrammarWalk(xgrammar, compiled, tokenizer.eos_ids[0], tokenizer.vocab_size)

    yield "xgrammar", by_xgrammar


def speed(compile_one: Compile, tokenizer: Tokenizer, repeats: int) -> dict[str, Any]:
    """Compile and mask times over the workload; a schema's second answer finds states made."""
    compiles, masks, again = [], [], []
    for schema, instance in WORKLOAD:
        for repeat in range(repeats):
            # A new title makes a schema that no cache has seen.
            began = time.perf_counter()
            walk = compile_one({**schema, "title": str(repeat)})
            compiles.append(1e3 * (time.perf_counter() - began))
            ids = list(tokenizer.encode(json.dumps(instance)))
            masks += walk.masks(ids)
            again += walk.masks(ids)
    return {"compile_ms": told(compiles), "first_mask_us": told(masks), "mask_us": told(again)}


def coverage(compile_one: Compile, suite: Path) -> dict[str, Any]:
    """What of a test suite compiles, and what of it is right."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    for path in sorted(suite.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            counts["schemas"] += 1
            try:
                walk = compile_one(group["schema"])
            except (RequestError, ValueError, RuntimeError) as error:
                counts["refused"] += 1
                reasons[_reason(error)] += 1
                continue
            verdicts = Counter(_verdict(walk, group["schema"], test) for test in group["tests"])
            counts += verdicts
            counts["unsound_schemas"] += verdicts["unsound"] > 0
            if verdicts["unsound"]:
                wrong.append(f"{path.stem}: {group['description']}")
    return dict(counts) | {"unsound_in": wrong, "refused_for": dict(reasons.most_common())}


def _reason(error: Exception) -> str:
    """The keyword, or the beginning of what the engine says, less what is one schema's own."""
    said = str(error)
    if isinstance(error, RequestError) and "compile" in error.what:
        said = error.found
    named = re.search(r"(?:keyword|format) '[^']*'|minProperties", said)
    return named[0] if named else re.sub(r"at #\S*: |[:;,].*", "", said.splitlines()[-1])[:60]


def _verdict(walk: Walk, schema: Any, test: dict[str, Any]) -> str:
    instance = test["data"]
    if isinstance(instance, dict) and isinstance(schema, dict):
        first = [name for name in schema.get("properties", {}) if name in instance]
        instance = {name: instance[name] for name in (*first, *instance)}
    passes = walk.accepts(json.dumps(instance, ensure_ascii=False))
    if passes == test["valid"]:
        return "right"
    return "unsound" if passes else "incomplete"


def forced(num_sequences: int) -> dict[str, Any]:
    """The share of tokens that grammars force in answers of the embedded model."""
    result: dict[str, Any] = {}
    for style, compact in (("bounded white space", False), ("disable_any_whitespace", True)):
        with LLM(max_num_seqs=num_sequences) as llm:
            sampling = [
                SamplingParams(
                    temperature=1.0, seed=i, max_tokens=300,
                    structured_outputs=StructuredOutputs(
                        json=WORKLOAD[i % 4][0], disable_any_whitespace=compact
                    ),
                )
                for i in range(num_sequences)
            ]  # fmt: skip
            llm.generate(["Data:"] * num_sequences, sampling, use_tqdm=False)
            stats = llm._loaded.core.stats()
        share = round(stats.forced_tokens / stats.generated_tokens, 4)
        result[style] = {"generated_tokens": stats.generated_tokens, "forced_share": share}
    return result


def import_ms(name: str) -> float | None:
    """Milliseconds that an import takes in a fresh process; None where it is not installed."""
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return round(1e3 * float(done.stdout.split()[-1]), 1) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=129_280)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "load_average": os.getloadavg(), "python": platform.python_version()},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True,
                                 check=True).stdout.strip(),
        "config": {"suite": asked.suite.name, "repeats": asked.repeats,
                   "sequences": asked.sequences},
        "import_ms": {name: import_ms(name) for name in ("llguidance", "xgrammar")},
        "forced": forced(asked.sequences),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = large_tokenizer(Path(directory), asked.vocab_size)
        result["config"]["vocab_size"] = tokenizer.vocab_size
        for name, compile_one in engines(tokenizer):
            result[name] = speed(compile_one, tokenizer, asked.repeats)
            result[name]["coverage"] = coverage(compile_one, asked.suite)
    text = json.dumps(result, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
