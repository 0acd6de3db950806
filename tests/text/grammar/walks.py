"""Walks through grammars for tests: every string that masks let through, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from fathom.core.types import StructuredOutputs
from fathom.text.grammar.asked import Asked
from fathom.text.grammar.engine import GrammarEngine, TokenConstraint
from fathom.text.tokenizer import Tokenizer


def constraint_of(engine: GrammarEngine, **form: Any) -> TokenConstraint:
    return engine.constraint(engine.check(Asked(form=StructuredOutputs(**form))))


def allowed_ids(constraint: TokenConstraint) -> list[int]:
    row = constraint.mask(()).read()
    assert not constraint.error, constraint.error
    return [i for i in range(len(row) * 8) if row[i >> 3] >> (i & 7) & 1]


def all_prefixes(
    engine: GrammarEngine, tokenizer: Tokenizer, text: str, max_bytes: int
) -> Iterator[tuple[bytes, set[bytes], bool]]:
    """Every prefix of up to `max_bytes` that masks let through, with the bytes of the tokens
    allowed after it and whether it may end there. `text` is the grammar's."""
    waiting: list[tuple[int, ...]] = [()]
    seen = set()
    while waiting:
        ids = waiting.pop()
        prefix = b"".join(map(tokenizer.token_bytes, ids))
        constraint = engine.constraint(text)
        for token_id in ids:
            constraint.accept(token_id)
        allowed = allowed_ids(constraint)
        ends = [i for i in allowed if i in tokenizer.eos_ids]
        tokens = [i for i in allowed if i not in tokenizer.eos_ids]
        yield prefix, {tokenizer.token_bytes(i) for i in tokens}, bool(ends)
        for token_id in tokens:
            longer = prefix + tokenizer.token_bytes(token_id)
            if len(longer) <= max_bytes and longer not in seen:
                seen.add(longer)
                waiting.append((*ids, token_id))


def random_answer(
    constraint: TokenConstraint, tokenizer: Tokenizer, pick: random.Random, *, jumps: bool
) -> tuple[str, list[int]] | None:
    """A text that a model without sense would write under the masks, and its tokens; None where it
    has not ended after 600 tokens. It likes to end things."""
    ids: list[int] = []
    while len(ids) < 600:
        forced = constraint.forced() if jumps else ()
        if not forced:
            allowed = allowed_ids(constraint)
            short = [i for i in allowed if tokenizer.token_bytes(i)[-1:] in (b'"', b"}", b"]", b"")]
            forced = (pick.choice(short if short and pick.random() < 0.4 else allowed),)
        for token_id in forced:
            if token_id in tokenizer.eos_ids:
                return b"".join(map(tokenizer.token_bytes, ids)).decode(), ids
            ids.append(token_id)
            constraint.accept(token_id)
            assert not constraint.error, constraint.error
    return None
