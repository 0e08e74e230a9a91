"""sha256 of files, each read once: a hash is remembered while path, size, times and inode of the file stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cirbench.data.cache import cache_dir

__all__ = ["database", "file_sha256", "file_sha256s", "looked_up"]

#: A file changed this recently could change again within one clock tick unnoticed, so its hash is not stored yet.
RECENT = 2.0
#: Rows per query; SQLite limits the parameters of a statement.
CHUNK = 500

_known: dict[str, tuple[str, str]] = {}


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256s(paths: Sequence[Path]) -> list[str]:
    """sha256 of many files, in order; those that were read before and have not changed since are not read again.

    Raises:
        OSError: a file cannot be read.
    """
    names = [os.path.abspath(path) for path in paths]  # noqa: PTH100  links are kept: their target may be exchanged
    now = time.time()
    stamps = dict(zip(names, map(_stamp, names), strict=True))
    todo = [name for name, (stamp, _) in stamps.items() if _known.get(name, ("", ""))[0] != stamp]
    with database("hashes.sqlite3", "files (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)") as rows:
        for name, stamp, sha in looked_up(rows, "SELECT path, stamp, sha256 FROM files WHERE path IN ({})", todo):
            if stamps[name][0] == stamp:
                _known[name] = stamp, sha
        todo = [name for name in todo if _known.get(name, ("", ""))[0] != stamps[name][0]]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            hashed = dict(zip(todo, pool.map(lambda name: file_sha256(Path(name)), todo), strict=True))
        settled = {name: sha for name, sha in hashed.items() if now - stamps[name][1] > RECENT}
        _known.update({name: (stamps[name][0], sha) for name, sha in settled.items()})
        if rows is not None and settled:
            with contextlib.suppress(sqlite3.Error), rows:  # a full or read-only disk costs time, not the run
                rows.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                    [(name, stamps[name][0], sha) for name, sha in settled.items()],
                )
    return [hashed[name] if name in hashed else _known[name][1] for name in names]


def _stamp(name: str) -> tuple[str, float]:
    """A stamp that changes when the file does, and the time of its last change."""
    seen = Path(name).stat()
    return f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}", \
        max(seen.st_mtime, seen.st_ctime)


@contextlib.contextmanager
def database(name: str, table: str) -> Iterator[sqlite3.Connection | None]:
    """A file of the cache with one table, or None if it cannot be used; a damaged one is recreated.

    Args:
        name: of the file.
        table: its name and its columns, as SQL creates it.
    """
    path = cache_dir() / name
    connection = None
    for attempt in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=10)
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            connection.commit()
            break
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            connection = None
            if attempt or not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.OperationalError):
                break
            with contextlib.suppress(OSError):
                path.unlink()
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def looked_up(
    rows: sqlite3.Connection | None, ask: str, keys: Sequence[str], *first: str
) -> Iterator[tuple[Any, ...]]:
    """The rows of a table that belong to some keys; none where it cannot be read.

    Args:
        rows: of `database`.
        ask: in SQL, with {} in the place of the keys.
        keys: as many as there are.
        *first: values of what stands before them.
    """
    if rows is None:
        return
    for start in range(0, len(keys), CHUNK):
        some = keys[start : start + CHUNK]
        try:
            yield from rows.execute(ask.format(",".join("?" * len(some))), [*first, *some]).fetchall()
        except sqlite3.Error:
            return
