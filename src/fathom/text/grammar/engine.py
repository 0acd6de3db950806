"""The grammar engine (llguidance) behind one tokenizer: compiled grammars and their automata."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import llguidance

from fathom.errors import RequestError
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.build import grammar_text
from fathom.text.grammar.recent import Recent
from fathom.text.grammar.schema import SchemaFault, subschemas
from fathom.text.grammar.translate import in_engine_words
from fathom.text.tokenizer import Tokenizer

_LISTING = re.compile(r"\s*\d+ \||\s*\^\s*$|<non-verbose/>")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
# What the engine says where one of `_limits` below is reached.
_LIMITS = re.compile(
    r"too many (expressions|states|items)|too (big|large)|fuel exhausted|items; max is"
    r"|unable to determine if regex is empty",
    re.IGNORECASE,
)
_MAX_CACHED = 64
# What a grammar compiles to grows with its text, and is hundreds of times as long for a pattern.
_MAX_CACHED_CHARS = 512 * 1024
# What is allowed as a whole where it is: a mask walks the other tokens one by one. Counts, because
# a string that may have so many characters more takes every token of up to as many.
_CHARACTER = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_CHARACTER}{{1,{count}}}" for count in (2, 4, 6, 8, 10, 15, 20, 30)),
    f"{_CHARACTER}+",
]
_NUM_BEGUN = 4  # tokens of an answer that are tried before a grammar is taken
_MAX_LOCATED = 200  # schemas compiled by themselves to find the one at fault


class GrammarEngine:
    """Compiles grammars for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._walker = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=tokenizer.vocab_size,
            eos_token=list(tokenizer.eos_ids),
            slices=_SLICES,
        )
        # Fuel is steps of the regex compiler, about 50,000 a millisecond when a grammar is compiled
        # and 14,000 in a step; a state of the lexer is 1 to 2 kB.
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=1_000_000,
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_items_in_row=2_000,
            max_lexer_states=50_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        self._lock = threading.Lock()
        self._compiled: Recent[str, llguidance.LLMatcher] = Recent(_MAX_CACHED, _MAX_CACHED_CHARS)

    def check(self, asked: Asked) -> str:
        """The text of a grammar that can be compiled and begun within the limits.

        Raises: RequestError that names the field, and where it can the place in it.
        """
        text = grammar_text(asked, self._tokenizer)
        bare = replace(asked, reasoning="none")
        try:
            self._begin(self.constraint(text))
            if asked.reasoning != "none":
                self._begin(self.constraint(grammar_text(bare, self._tokenizer)))
        except RequestError as error:
            raise self._located(asked, error) from None
        return text

    def _begin(self, constraint: TokenConstraint) -> None:
        """Write the first tokens of an answer: some grammars outgrow the limits there.

        Raises: RequestError where this one does.
        """
        ends = sum(1 << token_id for token_id in self._tokenizer.eos_ids)
        for _ in range(_NUM_BEGUN):
            row = int.from_bytes(constraint.mask(()).read(), "little") & ~ends
            if row:
                constraint.accept(row.bit_length() - 1)
            if constraint.error:
                raise _refusal(constraint.error)

    def constraint(self, text: str) -> TokenConstraint:
        """An automaton at the start of a grammar that `check` gave.

        Raises: RequestError where it does not compile.
        """
        with self._lock:
            matcher = self._compiled.get(text)
            if matcher is None:
                matcher = self._compile(text)
                self._compiled.put(text, matcher, len(text))
            forget = partial(self._forget, text)
            return TokenConstraint(matcher.deep_copy(), self._tokenizer, forget)

    def _forget(self, text: str) -> None:
        """Copies share the states of the lexer: where those outgrew their limits, all of them end,
        and so would every later one."""
        with self._lock:
            self._compiled.drop(text)

    def _compile(self, text: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._walker, text, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(_said(matcher))
        return matcher

    def _located(self, asked: Asked, error: RequestError) -> RequestError:
        """The error with the field, and in a schema the keyword to blame."""
        schemas = {}
        form, field = asked.form, asked.field
        if form is not None and form.json is not None:
            schemas[form.field_path("json")] = str(form.json)
        for tool in asked.tools.tools if asked.tools is not None else ():
            if tool.schema is not None:
                schemas[tool.param] = tool.schema
        where = ""
        for name, text in schemas.items():
            schema = json.loads(text)
            if isinstance(schema, dict) and not self._compiles(schema, schema):
                field, where = name, f"at {self._pointer(schema)}: "
                break
        else:  # it compiles by itself, and cannot be begun
            if len(schemas) == 1:
                field, where = next(iter(schemas)), "at #: "
        return RequestError(
            f"{field}: {error.what}",
            param=field,
            code=error.code,
            found=f"{where}{error.found}",
        )

    def _pointer(self, schema: dict[str, object]) -> str:
        """The deepest schema that does not compile by itself, and the keyword that is to blame."""
        pointer, deepest = "#", schema
        for place, inner in islice(subschemas(schema), _MAX_LOCATED):
            is_inside = place.startswith(pointer) and isinstance(inner, dict)
            if is_inside and "$ref" not in inner and not self._compiles(inner, schema):
                pointer, deepest = place, inner
        for key in deepest:
            if self._compiles({k: v for k, v in deepest.items() if k != key}, schema):
                return f"{pointer}/{key}"
        return pointer

    def _compiles(self, inner: dict[str, object], schema: dict[str, object]) -> bool:
        alone = inner | {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        told = in_engine_words(alone)
        if isinstance(told, SchemaFault):
            return False
        text = json.dumps({"grammars": [{"name": "one", "json_schema": told}]})
        # Not `validate_grammar`, which lets the engine's panics through.
        matcher = llguidance.LLMatcher(self._walker, text, log_level=0, limits=self._limits)
        return not matcher.is_error()


def _refusal(said: str) -> RequestError:
    is_over = _LIMITS.search(said) is not None
    return RequestError(
        "the grammar needs more states than the limit"
        if is_over
        else "the grammar does not compile",
        code="schema_state_limit" if is_over else "unsupported_schema",
        found=said,
    )


def _said(matcher: llguidance.LLMatcher) -> str:
    """The engine's message, less the places and lines of a grammar that its author never saw."""
    error = matcher.get_error()
    if error.startswith("panic"):  # on its way to say what is wrong, most of the time
        return "the grammar engine cannot say why"
    if error.startswith("NoExtension"):
        return "it lets nothing be written"
    lines = [line for line in error.splitlines() if not _LISTING.match(line)]
    return _PLACE.sub("", "\n".join(lines)).strip()[:500]


class TokenConstraint:
    """A place in a grammar: `core.constraint.Constraint` over an automaton of the engine's."""

    def __init__(
        self, matcher: llguidance.LLMatcher, tokenizer: Tokenizer, forget: Callable[[], None]
    ) -> None:
        self._matcher, self._forget = matcher, forget
        self._nothing = bytes(-(-tokenizer.vocab_size // 8))
        self._eos_id = tokenizer.eos_ids[0]
        self.error = ""
        """Why it can say nothing more."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of the answer can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, drafts: Sequence[int]) -> LazyMask:
        """The tokens allowed next, and those allowed after each of `drafts`."""
        return LazyMask(self, tuple(drafts))

    def rows(self, drafts: tuple[int, ...]) -> bytes:
        """The rows of `mask`. Where the engine gives up, only the end is left to allow."""
        rows = [self._row()]
        for token_id in drafts:
            self._matcher.consume_token(token_id)
            rows.append(self._row())
        if drafts:
            self._matcher.rollback(len(drafts))
        return b"".join(rows)

    def _row(self) -> bytes:
        matcher = self._matcher
        row = self._nothing
        if not matcher.is_error():
            row = bytes(matcher.compute_bitmask()[: len(row)])
        if matcher.is_error() or row == self._nothing:
            self._give_up()
            end = bytearray(self._nothing)
            end[self._eos_id >> 3] = 1 << (self._eos_id & 7)
            return bytes(end)
        return row

    def _give_up(self) -> None:
        self.error = _said(self._matcher) or "no token can follow"
        self._forget()

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may follow, one after the other."""
        return int(self._matcher.validate_tokens(list(tokens))) if tokens else 0

    def accept(self, token_id: int) -> None:
        """Advance by a token."""
        if not self.error and not self._matcher.consume_token(token_id):
            self._give_up()

    def forced(self) -> tuple[int, ...]:
        """Tokens that must follow, tokenised as the text of the run is by itself.

        The last sampled token stays as the model chose it: a longer one was open to it. Of the
        run, tokens that may yet become longer are left to the model.
        """
        if self.error:
            return ()
        if self._matcher.is_stopped():
            return (self._eos_id,)
        return tuple(self._matcher.compute_ff_tokens())


class LazyMask:
    """A mask that is computed when it is first read, which is when the device is at work. Threads
    that read it meanwhile wait."""

    __slots__ = ("_bits", "_constraint", "_drafts", "_lock")

    def __init__(self, constraint: TokenConstraint, drafts: tuple[int, ...]) -> None:
        self._constraint, self._drafts = constraint, drafts
        self._bits: bytes | None = None
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The rows."""
        with self._lock:
            if self._bits is None:
                self._bits = self._constraint.rows(self._drafts)
            return self._bits


class _Vocabulary:
    """A tokenizer as the engine wants to see it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids.values(), *tokenizer.eos_ids})

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return list(self._tokenizer.encode(text))
