"""The journal of a run: one JSON line per epoch in the run's folder, written by one process, read by others.

It is the truth about the epochs: what a person and MLflow see follows it. An epoch that was done again after a restart
has a second line, with the same figures.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

Row = dict[str, float]
Line = TypeVar("Line")

JOURNAL = "journal.jsonl"
END = "at/end"
"""In a row: time.time() at the end of the epoch. Names that begin with at/ are times, and not for MLflow."""
POLL_S = 0.1


def plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """The row as JSON can hold it: NaN becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def from_plain(row: Mapping[str, float | None]) -> Row:
    """The row with NaN where JSON had null."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def append(file: Path, row: Mapping[str, float | None]) -> None:
    """Add one line and wait until the disk has it; what a killed writer left of a line is closed first."""
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with file.open("a+b") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read(file: Path, start: int = 0) -> tuple[list[Row], int]:
    """Whole lines from byte `start`, and the byte where the next reading begins; null comes back as NaN.

    A line that was cut off, and closed by the writer after it, is left out.
    """
    lines, end = whole_lines(file, start)
    return [row for line in lines if (row := _parsed(line)) is not None], end


def whole_lines(file: Path, start: int) -> tuple[list[bytes], int]:
    """The whole lines from byte `start`, and the byte where the next reading begins."""
    if not file.is_file():
        return [], start
    with file.open("rb") as stream:
        stream.seek(start)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), start + len(whole)


def _parsed(line: bytes) -> Row | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return from_plain(found) if isinstance(found, dict) else None


def epochs(file: Path) -> list[Row]:
    """One row per epoch in their order; of an epoch that was done again the later, and none of what came after it."""
    rows: list[Row] = []
    for row in read(file)[0]:
        while rows and rows[-1]["epoch"] >= row["epoch"]:
            rows.pop()
        rows.append(row)
    return rows


def followed(file: Path, listener: Callable[[Row], None]) -> AbstractContextManager[None]:
    """Hand every row that is written from now on to `listener`, as `lines_followed` does."""
    return lines_followed(file, listener, read)


@contextmanager
def lines_followed(
    file: Path, listener: Callable[[Line], None], lines: Callable[[Path, int], tuple[list[Line], int]]
) -> Iterator[None]:
    """Hand every line that is written from now on to `listener`, in a thread of its own, none left at the end.

    What `listener` raises ends the following and is raised at the end.

    Args:
        file: need not be there yet.
        listener: takes a line.
        lines: reads the whole lines of a file from a byte on, as `read` does.
    """
    done = threading.Event()
    start = file.stat().st_size if file.is_file() else 0
    failures: list[Exception] = []

    def follow() -> None:
        position = start
        while True:
            last_round = done.is_set()
            try:
                found, position = lines(file, position)
            except OSError:  # the disk is away: they are read when it is back
                found = []
            try:
                for line in found:
                    listener(line)
            except Exception as error:
                failures.append(error)
                return
            if last_round:
                return
            done.wait(POLL_S)

    thread = threading.Thread(target=follow, name="journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
