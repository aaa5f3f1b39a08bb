"""The record of who asked what of which model, in the files of medray/serving/chain.py.

Nothing of an image and nothing of what a model said of it is kept: fields are a fixed list, each of a kind that holds
no free text.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import ConfigError
from medray.serving import chain
from medray.serving.chain import Verdict, verify

__all__ = ["AuditLog", "Verdict", "cleaned", "default_folder", "verify"]

SHAPES: Mapping[str, re.Pattern[str]] = {
    "time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII),
    "request": re.compile(r"[0-9a-f]{32}"),
    "caller": re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]{0,79})?"),
    "route": re.compile(r"/[A-Za-z0-9._/{}:@-]{0,127}"),
    "code": re.compile(r"[a-z0-9_]{0,64}"),
    "outcome": re.compile(r"answered|refused|failed|cancelled|accepted"),
    "input": re.compile(r"([0-9a-f]{64})?"),
    "model": re.compile(r"([A-Za-z0-9][A-Za-z0-9._/@-]{0,255})?"),
    "digest": re.compile(r"[0-9a-f]{0,64}"),
}
"""Field of an event -> what its text may be."""
NUMBERS: Mapping[str, range] = {"status": range(100, 600), "batch": range(1, 1_000_000)}
"""Field of an event -> what its number may be."""
FIELDS = ("time", "request", "caller", "route", "status", "code", "outcome", "input", "model", "digest", "batch")
STAGES = frozenset(("read", "decode", "preprocess", "queue", "forward", "postprocess", "total"))
MOST_MS = 1e9


def default_folder() -> Path:
    """The folder of the record of who names none."""
    return cluster.home() / "audit"


def cleaned(event: Mapping[str, Any]) -> dict[str, Any]:
    """What the record keeps of an event: a field that is wrong is only named in `left_out`, an unknown one counted."""
    kept, left_out = {}, []
    for name in FIELDS:
        if name in event:
            if _fits(name, event[name]):
                kept[name] = event[name]
            else:
                left_out.append(name)
    if "timings_ms" in event:
        timings = event["timings_ms"]
        if isinstance(timings, Mapping) and all(map(_is_timing, timings.items())):
            kept["timings_ms"] = {stage: round(float(ms), 3) for stage, ms in timings.items()}
        else:
            left_out.append("timings_ms")
    if left_out:
        kept["left_out"] = left_out
    if unknown := len(event.keys() - {*FIELDS, "timings_ms", "signals"}):
        kept["unknown"] = unknown
    return kept


def _fits(name: str, value: object) -> bool:
    if name in NUMBERS:
        return type(value) is int and value in NUMBERS[name]
    return isinstance(value, str) and SHAPES[name].fullmatch(value) is not None


def _is_timing(item: tuple[object, object]) -> bool:
    stage, ms = item
    # Not bool, which is a number too; NaN is in no range.
    return stage in STAGES and isinstance(ms, int | float) and not isinstance(ms, bool) and 0 <= ms < MOST_MS


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """The one writer of a folder; may be asked from several threads."""

    def __init__(self, folder: Path, keep_days: int, clock: Callable[[], datetime] = _now) -> None:
        """Open the record, mend what a crash left, and delete what is old.

        Args:
            folder: of the record; it is made if it is not there.
            keep_days: a file that is older is deleted, and a line says so.
            clock: now, in UTC.

        Raises:
            ConfigError: another process writes there, or it cannot be written.
        """
        self._folder, self._keep_days, self._clock = folder, keep_days, clock
        self._mutex = threading.Lock()
        self._undo: tuple[Path, int] | None = None
        self._turned: date | None = None
        self._guard: int | None = None
        try:
            self._guard = _alone(folder)
            self._newest = max(chain.dated(folder).values(), default=date.min)
            self._last = chain.read_head(folder) or chain.START
            notes = self._recover()
            if notes or self._expired(self._day()):
                self._write(notes)
        except OSError as error:
            self.close()
            raise ConfigError([f"serve.audit.folder: '{folder}' cannot be written: {error.strerror}"]) from None

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write a line for each event, all at once, and wait until the disk has them.

        Raises:
            OSError: the disk did not take them: none of them is there, and the next call goes on.
        """
        if events:
            with self._mutex:
                self._write([cleaned(event) for event in events])

    def close(self) -> None:
        """Let another process write; what is written is on the disk already."""
        with self._mutex:
            if self._guard is not None:
                os.close(self._guard)
                self._guard = None

    def _day(self) -> date:
        # A clock that goes back does not put new lines into old files, before others.
        return max(self._clock().date(), self._newest)

    def _write(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        if self._guard is None:
            raise OSError(None, "the audit log is closed")
        self._restore()
        day = self._day()
        old = self._expired(day) if day != self._turned else []
        retired = [self._retired(file) for file in old if chain.FILE.fullmatch(file.name)]
        last = self._append(self._folder / f"audit-{day}.jsonl", day, [*retired, *bodies])
        self._last, self._newest, self._turned = last, day, day
        for file in old:
            # What cannot be deleted now is tried again another day; the chain is whole with it and without.
            with contextlib.suppress(OSError):
                file.unlink()

    def _append(self, file: Path, day: date, bodies: Sequence[Mapping[str, Any]]) -> chain.Link:
        """Write lines and then the head, or neither."""
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(handle).st_size
            if not size:
                _sync_folder(self._folder)
                bodies = [self._note(chain.OPENED, day=str(day)), *bodies]
            content, last = chain.chained(bodies, self._last)
            self._undo = (file, size)
            chain.put(handle, content)
            chain.write_head(self._folder, last)
        except OSError:
            with contextlib.suppress(OSError):
                self._restore()
            raise
        finally:
            os.close(handle)
        self._undo = None
        return last

    def _restore(self) -> None:
        """Take away what a failed write left."""
        if self._undo is not None:
            os.truncate(*self._undo)
            self._undo = None

    def _note(self, word: str, **said: Any) -> dict[str, Any]:
        """A line of the record about itself."""
        return {"note": word, "time": self._clock().strftime("%Y-%m-%dT%H:%M:%SZ"), **said}

    def _retired(self, file: Path) -> dict[str, Any]:
        seq, digest = chain.last_link(file)
        return self._note(chain.RETIRED, file=file.name, last_seq=seq, last_hash=digest)

    def _expired(self, day: date) -> list[Path]:
        """Files to delete, the oldest first."""
        files = chain.dated(self._folder, chain.TORN) | chain.dated(self._folder)
        return [file for file, made in files.items() if (day - made).days > self._keep_days]

    def _recover(self) -> list[dict[str, Any]]:
        """Find the end of the chain; notes of what a crash left after it."""
        files = list(chain.dated(self._folder))
        said: dict[str, Any] = {}
        if files and (torn := _set_aside(files[-1])):
            said = {"file": files[-1].name, "torn_bytes": torn}
        if chain.read_head(self._folder) is None:
            # No crash does this. Where there are lines the chain begins anew, for everybody to see.
            chain.write_head(self._folder, chain.START)
            said |= {"head": "missing"} if files else {}
        else:
            # The head is written after the lines: these were, and their writer was not told.
            known = self._last[0]
            for file in files[-2:]:
                self._last = chain.followed(file, self._last)
            said |= {"lines_after_head": self._last[0] - known} if self._last[0] > known else {}
        return [self._note(chain.RECOVERED, **said)] if said else []


def _set_aside(file: Path) -> int:
    """Move an incomplete last line to a file of its own; its bytes."""
    whole, raw = 0, b""
    with file.open("rb") as stream:
        for raw in stream:
            whole += len(raw)
    if not raw or raw.endswith(b"\n"):
        return 0
    aside = os.open(file.with_suffix(".torn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        chain.put(aside, raw + b"\n")
    finally:
        os.close(aside)
    os.truncate(file, whole - len(raw))
    return len(raw)


def _alone(folder: Path) -> int:
    """A lock on the folder, which goes with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    guard = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(guard)
        way = "end it, or give this one another folder"
        raise ConfigError([f"serve.audit.folder: another service writes to '{folder}'; {way}"]) from None
    return guard


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
