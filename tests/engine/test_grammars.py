"""Compares the process that checks grammars with its own promises: limits hold, it comes back, and
what it lets through compiles again; and answers of `LLM` with and without company."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import time
from typing import Any

import jsonschema
import pytest

from fathom import LLM, SamplingParams
from fathom.core.types import StructuredOutputs
from fathom.engine import grammar_process, grammars
from fathom.engine.grammars import GrammarChecker
from fathom.errors import EngineError, RequestError
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.engine.waiting import until

SLOW = {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(40)]}
PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 8},
        "customer_number": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["first_name", "customer_number"],
    "additionalProperties": False,
}


def asked(**form: object) -> Asked:
    return Asked(form=StructuredOutputs(**form))  # type: ignore[arg-type]


def test_slow_grammars_are_killed_and_the_next_one_is_checked() -> None:
    async def main() -> None:
        checker = GrammarChecker(embedded_path)
        try:
            text = await checker.check(asked(regex="[a-z]+"))
            began_s = time.monotonic()
            with pytest.raises(RequestError, match="too long") as caught:
                await checker.check(asked(json=SLOW))
            assert time.monotonic() - began_s < grammars.CHECK_TIMEOUT_S + 5
            assert caught.value.param == "structured_outputs.json"
            # Several at once, one of them wrong, after the restart.
            told = await asyncio.gather(
                *(checker.check(asked(regex=pattern)) for pattern in ("[a-z]+", "a|b", "(", "c")),
                return_exceptions=True,
            )
            assert told[0] == text
            assert [isinstance(one, RequestError) for one in told] == [False, False, True, False]
            engine = GrammarEngine(Tokenizer.load(embedded_path()))
            assert engine.constraint(text).mask(()).read()
        finally:
            await checker.close()

    asyncio.run(main())


def refusal(form: Asked, max_more_bytes: int = grammars.MAX_MORE_BYTES) -> RequestError:
    """Why a grammar is refused; the next one is checked all the same."""

    async def main() -> RequestError:
        checker = GrammarChecker(embedded_path, max_more_bytes)
        try:
            with pytest.raises(RequestError) as caught:
                await checker.check(form)
            assert await checker.check(asked(regex="b"))
            return caught.value
        finally:
            await checker.close()

    return asyncio.run(main())


TEXTS = [f"{i}" + "x" * 900 for i in range(4000)]
MANY_STATES = {"properties": {"a": {"allOf": SLOW["allOf"][:8]}}}


@pytest.mark.parametrize(
    ("form", "max_more_bytes", "code", "words"),
    [
        (asked(json=SLOW), grammars.MAX_MORE_BYTES, "schema_time_limit", "too long"),
        # In the compiler's allocations, and in Python's.
        (asked(json=SLOW), 16 << 20, "schema_memory_limit", "too much memory"),
        (asked(choice=TEXTS), 8 << 20, "schema_memory_limit", "too much memory"),
        (
            asked(json=MANY_STATES),
            grammars.MAX_MORE_BYTES,
            "schema_state_limit",
            "#/properties/a/allOf",
        ),
    ],
    ids=["time", "memory", "memory of Python", "states"],
)
def test_each_limit_has_its_name(form: Asked, max_more_bytes: int, code: str, words: str) -> None:
    error = refusal(form, max_more_bytes)
    assert (error.http_status, error.code) == (400, code), error
    assert words in str(error)
    assert error.param is not None
    assert error.param.startswith("structured_outputs.")


def test_large_grammars_do_not_stay_until_the_next_one_is_too_large() -> None:
    """Compiled grammars were kept by their number alone. A dozen large ones, each well within the
    limit, filled the memory of the process, and the next was refused for taking too much; in the
    engine's process, which has no limit, they could come to gigabytes."""

    async def main() -> None:
        checker = GrammarChecker(embedded_path, 320 << 20)
        try:
            for index in range(12):  # of about 35 MiB each
                assert await checker.check(asked(regex="x" * (100_000 + index)))
        finally:
            await checker.close()

    asyncio.run(main())


def test_references_that_lead_on_for_ever_crash_nothing() -> None:
    """The grammar engine follows them on its stack: a chain of 4,000 ended the process, which was
    told as an error of the server. What compiles here has to compile in the engine's process too,
    so there is less of a stack here."""
    for wrap in ({"items": 0}, {"allOf": [0]}, 0):
        links = [json.loads(json.dumps(wrap).replace("0", f'{{"$ref": "#/$defs/{i + 1}"}}'))
                 for i in range(4000)]  # fmt: skip
        defs = {str(i): link for i, link in enumerate(links)} | {"4000": {"type": "string"}}
        error = refusal(asked(json={"$defs": defs, "$ref": "#/$defs/0"}))
        assert (error.http_status, error.code) == (400, "unsupported_schema"), error
        assert re.search(r"at #/\$defs/\d+.*/\$ref", str(error)), error
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    less, _ = grammar_process._less_stack()
    assert 0 < less < (soft if soft != resource.RLIM_INFINITY else 2 << 20)


def test_rules_that_lead_on_for_ever_are_the_requests_fault() -> None:
    """A grammar of the request's own can do the same, and ended the process: an error of the
    server. In rules and in terminals."""
    for name in ("r", "R"):
        rules = [f'{name}{i}: {name}{i + 1} "x"' for i in range(5000)]
        grammar = "\n".join([f"start: {name}0", *rules, f'{name}5000: "y"'])
        error = refusal(asked(grammar=grammar))
        assert (error.http_status, error.code) == (400, "schema_depth_limit"), error
        assert error.param == "structured_outputs.grammar"


def test_letters_of_many_bytes_in_a_wrong_schema_crash_nothing() -> None:
    """The grammar engine cuts what it quotes after 100 bytes, and panics where that is inside a
    letter. Where a schema was compiled again to find the keyword at fault, the panic came through,
    ended the process, and was told as an error of the server."""
    for shift in range(4):
        wrong = {"maximum": {"a": "x" * shift + "\U0001f600" * 60}}
        error = refusal(asked(json=wrong))
        assert (error.http_status, error.code) == (400, "unsupported_schema"), error
        assert "#/maximum" in str(error)
        assert "panic" not in str(error)


@pytest.mark.parametrize("how", [signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_no_limit_and_not_the_requests_fault(how: signal.Signals) -> None:
    async def main() -> None:
        checker = GrammarChecker(embedded_path)
        try:
            await checker.check(asked(regex="a"))
            process = checker._process
            assert process is not None
            process.send_signal(how)
            await process.wait()
            assert await checker.check(asked(regex="b"))  # it died of neither request
            checking = asyncio.ensure_future(checker.check(asked(json=SLOW)))
            await until(checker._lock.locked)
            process = checker._process
            assert process is not None
            process.send_signal(how)
            with pytest.raises(EngineError, match=f"structured_outputs.json crashed.*{how.name}"):
                await checking
            assert await checker.check(asked(regex="c"))
        finally:
            await checker.close()

    asyncio.run(main())


def test_a_client_that_leaves_does_not_get_anothers_answer() -> None:
    async def main() -> None:
        checker = GrammarChecker(embedded_path)
        try:
            first = await checker.check(asked(regex="first"))
            gone = asyncio.ensure_future(checker.check(asked(json=SLOW)))
            await until(checker._lock.locked)
            gone.cancel()
            assert await checker.check(asked(regex="second")) != first
            assert "second" in await checker.check(asked(regex="second"))
        finally:
            await checker.close()

    asyncio.run(main())


def test_answers_of_the_library_do_not_depend_on_company_or_pages() -> None:
    """Forced tokens, preemption and batches of the model itself; few pages make it preempt."""
    several = {"type": "array", "items": PERSON, "minItems": 5, "maxItems": 5}
    forms: list[Any] = [{"json": several}, {"json": several, "disable_any_whitespace": True}]
    forms += [{"regex": "[0-9]{4}"}, None, {"json": several}, {"choice": ["yes", "no"]}]
    sampling = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=200, structured_outputs=form)
        for seed, form in enumerate(forms)
    ]
    prompts = [f"{i} " + "Somebody: " * 8 for i in range(len(sampling))]
    answers = []
    for settings in ({}, {"max_num_seqs": 1}, {"kv_cache_memory_bytes": 40 * 64 * 1024}):
        with LLM(**settings) as llm:  # type: ignore[arg-type]
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            stats = llm._loaded.core.stats()
        assert stats.forced_tokens > 20
        assert bool(stats.preemptions) == ("kv_cache_memory_bytes" in settings)
        answers.append([output.outputs[0].text for output in outputs])
    assert answers[0] == answers[1] == answers[2]
    for index in (0, 1, 4):
        jsonschema.validate(json.loads(answers[0][index]), several)
    assert re.fullmatch("[0-9]{4}", answers[0][2])
    assert answers[0][5] in ("yes", "no")


def test_a_grammar_that_grows_too_large_ends_its_own_request_alone() -> None:
    """Nested counts compile at once, and their states run out of bounds as the answer grows."""
    nested = "((((a{1,999}b?){1,999}c?){1,999}d?){1,999}e?){1,999}"
    wide = SamplingParams(
        max_tokens=900, min_tokens=900, seed=1, structured_outputs={"regex": nested}
    )  # type: ignore[arg-type]
    fine = SamplingParams(max_tokens=20, structured_outputs={"regex": "[0-9]{3}"})  # type: ignore[arg-type]
    with LLM() as llm:
        with pytest.raises(RequestError, match="could not complete") as caught:
            llm.generate("a", wide, use_tqdm=False)
        assert caught.value.param == "structured_outputs.regex"
        assert caught.value.code == "schema_state_limit"
        assert len(llm.generate("a", fine, use_tqdm=False)[0].outputs[0].text) == 3
        assert llm._loaded.core.stats().kv_usage == 0


def test_wrong_forms_are_named() -> None:
    for form, said in (
        ({"json": {"uniqueItems": True}}, "#/uniqueItems"),
        ({"regex": "a", "grammar": "b"}, "regex, grammar"),
        ({"regexp": "a"}, "regexp"),
        ({"choice": []}, "choice"),
        ({"json": 3}, "structured_outputs.json"),
        ("[a-z]", "structured_outputs"),
    ):
        with pytest.raises(RequestError, match=re.escape(said)), LLM() as llm:
            llm.generate("x", SamplingParams(structured_outputs=form))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="ignore_eos"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)  # type: ignore[arg-type]
