"""Word vectors in a file that outlives a run and that several runs may use at once.

The file is a SQLite database: a run that is killed leaves it intact, and two runs that write take turns. It belongs to
one model in one precision and runtime, and never grows beyond its limit: the words that come first stay, which in text
are the frequent ones.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashelmo.engine.arrays import Float32, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system.forks import InEachProcess

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger("flashelmo")

APPLICATION_ID = 0x464C4D4F  # "FLMO", in the header of a SQLite file
PAGE_BYTES = 1 << 14  # holds several vectors; a page of 4 KiB would hold one and be half empty
ROW_BYTES = 64  # per word, in addition to its vector and twice its letters
SPLIT_PAGES = 3  # that few words may add: of the words, and of their index
MOST_AT_ONCE = 500  # words per query; SQLite takes 999 or more
WAIT_SECONDS = 60.0  # for another run to finish writing
SCHEMA = (
    "CREATE TABLE belongs_to (name TEXT PRIMARY KEY, value TEXT)",
    "CREATE TABLE words (word BLOB PRIMARY KEY, vector BLOB, crc INTEGER)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)


class WordFile:
    """The vectors [P] of words in one file.

    Args:
        path: the file; created if it does not exist.
        belongs_to: what the vectors depend on: the model's sha256, precision, runtime.
        size: P.
        max_bytes: the file's size limit.

    Raises:
        FlashElmoError: the file is of another kind or another model, or cannot be opened.
    """

    def __init__(self, path: Path, belongs_to: Mapping[str, str], size: int, max_bytes: int) -> None:
        self._path, self._size, self._max_bytes = path, size, max_bytes
        self._database = InEachProcess(partial(_open, path, dict(belongs_to)))
        self._reads = self._writes = True  # until one fails

    def read(self, names: list[str], values: Float32) -> Int64:
        """Copy known vectors into `values` [n, P]; return the indices of unknown words."""
        import sqlite3

        unknown = np.ones(len(names), np.bool_)
        places = {name.encode(): i for i, name in enumerate(names)}
        keys = list(places)
        try:
            for start in range(0, len(keys) if self._reads else 0, MOST_AT_ONCE):
                asked = keys[start : start + MOST_AT_ONCE]
                query = f"SELECT word, vector, crc FROM words WHERE word IN ({', '.join('?' * len(asked))})"
                for word, vector, crc in self._database().execute(query, asked):
                    if len(vector) == 4 * self._size and zlib.crc32(vector) == crc:
                        values[places[word]] = np.frombuffer(vector, "<f4")
                        unknown[places[word]] = False
        except sqlite3.Error as error:
            self._reads = self._writes = False
            logger.warning("%s: cannot be read: %s; words are computed", self._path, error)
        return np.flatnonzero(unknown)

    def write(self, names: list[str], values: Float32) -> None:
        """Keep words' vectors, as many as the limit allows."""
        import sqlite3

        if not self._writes:
            return
        database = self._database()
        try:
            database.execute("BEGIN IMMEDIATE")
            with database:  # commits, or rolls back
                n_pages = database.execute("PRAGMA page_count").fetchone()[0] + SPLIT_PAGES
                keys = [name.encode() for name in names]
                sizes = np.array([4 * self._size + 2 * len(key) + ROW_BYTES for key in keys], np.int64)
                sizes = sizes * PAGE_BYTES / (PAGE_BYTES - np.minimum(sizes, PAGE_BYTES // 2))  # a page has whole rows
                n_kept = int(np.searchsorted(np.cumsum(sizes), self._max_bytes - n_pages * PAGE_BYTES, side="right"))
                vectors = [value.tobytes() for value in values[:n_kept].astype("<f4", copy=False)]
                rows = [(key, vector, zlib.crc32(vector)) for key, vector in zip(keys, vectors, strict=False)]
                database.executemany("INSERT OR REPLACE INTO words VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._writes = False
            logger.warning("%s: cannot be written: %s; new words are not kept there", self._path, error)


def _open(path: Path, belongs_to: dict[str, str]) -> sqlite3.Connection:
    import sqlite3

    try:
        database = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            if not _is_begun(database):
                _begin(database, belongs_to)
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise FlashElmoError(f"{path}: expected a file of word vectors, found another SQLite database")
            found = dict(database.execute("SELECT name, value FROM belongs_to"))
        except BaseException:
            database.close()
            raise
    except sqlite3.OperationalError as error:
        raise FlashElmoError(f"{path}: cannot be opened as a file of word vectors: {error}") from None
    except sqlite3.DatabaseError as error:
        raise FlashElmoError(f"{path}: expected a file of word vectors, found something else: {error}") from None
    for name, expected in belongs_to.items():
        if found.get(name) != expected:
            raise FlashElmoError(
                f"{path}: expected word vectors of {name} {expected}, found those of {found.get(name)}; "
                "name another file, or remove this one"
            )
    return database


def _is_begun(database: sqlite3.Connection) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _begin(database: sqlite3.Connection, belongs_to: dict[str, str]) -> None:
    """Set up a new file, unless another run does so first."""
    database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    database.execute("BEGIN IMMEDIATE")
    with database:  # commits, or rolls back
        if not _is_begun(database):
            for statement in SCHEMA:
                database.execute(statement)
            database.executemany("INSERT INTO belongs_to VALUES (?, ?)", belongs_to.items())
