"""The journal of a run: one JSON line per epoch in the run's folder, written by one process, read by another."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Row = dict[str, float]

POLL_S = 0.1


def plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """The row as JSON can hold it: NaN becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def from_plain(row: Mapping[str, float | None]) -> Row:
    """The row with NaN where JSON had null."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def append(file: Path, row: Mapping[str, float | None]) -> None:
    """Add one line."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, allow_nan=False) + "\n")


def read(file: Path, start: int = 0) -> tuple[list[Row], int]:
    """Whole lines from byte `start`, and the byte where the next reading begins; null comes back as NaN."""
    if not file.is_file():
        return [], start
    with file.open("rb") as stream:
        stream.seek(start)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    return [from_plain(row) for row in rows], start + len(whole)


@contextmanager
def followed(file: Path, listener: Callable[[Row], None]) -> Iterator[None]:
    """Hand every line that is written from now on to `listener`, in a thread of its own, none left at the end.

    What `listener` raises ends the following and is raised at the end.
    """
    done = threading.Event()
    start = file.stat().st_size if file.is_file() else 0
    failures: list[Exception] = []

    def follow() -> None:
        position = start
        while True:
            last_round = done.is_set()
            rows, position = read(file, position)
            try:
                for row in rows:
                    listener(row)
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
