"""Answers that are kept, in SQLite: for a time, up to a size, each for the key that asked."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import json

from fathom.errors import ConfigError, UnavailableError

# The oldest answers go when all of them are larger.
MAX_BYTES = 256 * 1024 * 1024
MAX_CHAIN = 1000
# How long another process may hold the file. The server's loop waits meanwhile.
LOCK_TIMEOUT_S = 0.2
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, expires_s REAL NOT NULL, size INTEGER NOT NULL,
    kept BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_end ON responses (expires_s);
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, and the items that it answered."""

    response: dict[str, Any]
    items: list[dict[str, Any]]


class ResponseStore:
    """`path` None keeps answers in memory, as long as the server lives. Safe in threads.

    Raises: ConfigError where the file is none that SQLite can write. Every method, where that is so
    later (it is locked, damaged, or its disk full): UnavailableError.
    """

    def __init__(self, path: str | None, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s, self._clock = ttl_s, clock
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                path or ":memory:", timeout=LOCK_TIMEOUT_S, check_same_thread=False
            )
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(
                "--responses-db", found=f"{path}: {error}", wanted="a file that SQLite can write"
            ) from error

    def put(self, tenant: str, kept: Kept) -> None:
        """Keep an answer under its id; forgets what is over its time, or too much."""
        body, now_s = json.encode(kept), self._clock()
        with self._opened() as db:
            db.execute("DELETE FROM responses WHERE expires_s <= ?", (now_s,))
            db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?)",
                (kept.response["id"], tenant, now_s + self._ttl_s, len(body), body),
            )
            db.execute(
                "DELETE FROM responses WHERE id IN (SELECT id FROM (SELECT id, sum(size) OVER"
                " (ORDER BY expires_s DESC, rowid DESC) AS total FROM responses) WHERE total > ?)",
                (MAX_BYTES,),
            )

    def get(self, tenant: str, response_id: str) -> Kept | None:
        """What was kept under an id; None where it never was, is over, or is another key's."""
        with self._opened() as db:
            row = db.execute(
                "SELECT kept FROM responses WHERE id = ? AND tenant = ? AND expires_s > ?",
                (response_id, tenant, self._clock()),
            ).fetchone()
        return None if row is None else json.decode(row[0], type=Kept)

    def delete(self, tenant: str, response_id: str) -> bool:
        """Forget an answer; whether it was there."""
        with self._opened() as db:
            found = db.execute(
                "DELETE FROM responses WHERE id = ? AND tenant = ? AND expires_s > ?",
                (response_id, tenant, self._clock()),
            )
        return found.rowcount > 0

    def chain(self, tenant: str, response_id: str) -> list[Kept] | None:
        """An answer and all that it goes back to, the first one first; None where one of them is
        no more."""
        found: list[Kept] = []
        wanted: str | None = response_id
        while wanted is not None:
            kept = self.get(tenant, wanted)
            if kept is None or len(found) == MAX_CHAIN:
                return None
            found.append(kept)
            wanted = kept.response["previous_response_id"]
        return found[::-1]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, for one thread at a time, and all that is done to it or nothing."""
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise UnavailableError(
                "kept responses are out of reach", found=str(error), fix="see to --responses-db"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()
