"""sha256 of files, remembered: hashing a dataset again costs one stat a file."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from medray.types import ArrayRef, CaseRef, SeriesRef

HASHES = "hashes.sqlite"
"""Name of the cache of file hashes, beside the stores."""
MISSING = "missing"


def files_of(ref: CaseRef) -> tuple[Path, ...]:
    """The files that the image of a case is read from."""
    if isinstance(ref.source, SeriesRef):
        return ref.source.files
    return (ref.source.path if isinstance(ref.source, ArrayRef) else ref.source,)


def file_hashes(files: Iterable[Path], cache: Path) -> dict[Path, str]:
    """sha256 of each file in hex; MISSING where it cannot be read.

    Args:
        files: what to hash.
        cache: an SQLite file; a hash in it counts while the file's size and modification time are the same.
    """
    hashes: dict[Path, str] = {}
    with contextlib.closing(sqlite3.connect(cache, timeout=60)) as table, table:
        table.execute("create table if not exists hash (path text primary key, size int, time int, sha256 text)")
        known = {row[0]: row[1:] for row in table.execute("select path, size, time, sha256 from hash")}
        fresh = []
        for file in files:
            try:
                stat = file.stat()
                size, time, sha256 = known.get(str(file), (None, None, ""))
                if (size, time) != (stat.st_size, stat.st_mtime_ns):
                    with file.open("rb") as stream:
                        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                    fresh.append((str(file), stat.st_size, stat.st_mtime_ns, sha256))
            except OSError:
                sha256 = MISSING
            hashes[file] = sha256
        table.executemany("insert or replace into hash values (?, ?, ?, ?)", fresh)
    return hashes
