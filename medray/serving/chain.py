"""Files of the audit: lines that each name the hash of the one before, a file per UTC day, and how they are verified.

A line that was changed, taken out, put in or moved breaks the chain; head.json names the last line; the first line of
a file names its day, so that none moves from file to file. Who can write to the folder could compute all of it anew: a
copy of head.json elsewhere shows that too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

HEAD = "head.json"
FILE = re.compile(r"audit-(\d{4}-\d\d-\d\d)\.jsonl")
TORN = re.compile(r"audit-(\d{4}-\d\d-\d\d)\.torn")
Link = tuple[int, str]
"""Number of a line and sha256 of it, without its line feed."""
START: Link = (0, "0" * 64)
"""What the first line of all follows."""
OPENED, RETIRED, RECOVERED = "opened", "retired", "recovered"
"""Lines of the record about itself: the first of a file, of a file that was deleted for its age, of a crash."""


def dated(folder: Path, names: re.Pattern[str] = FILE) -> dict[Path, date]:
    """Files of the record and their days, the oldest first."""
    found = {}
    for file in sorted(folder.iterdir()):
        if match := names.fullmatch(file.name):
            with contextlib.suppress(ValueError):
                found[file] = date.fromisoformat(match[1])
    return found


def dumped(tree: Mapping[str, Any]) -> bytes:
    """The one way to write a line."""
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256(line: bytes) -> str:
    """What the next line says of `line`."""
    return hashlib.sha256(line).hexdigest()


def chained(bodies: Sequence[Mapping[str, Any]], last: Link) -> tuple[bytes, Link]:
    """Lines that follow `last`, and what the next ones follow."""
    lines, (seq, digest) = [], last
    for body in bodies:
        seq += 1
        line = dumped({"seq": seq, "prev": digest, **body})
        digest = sha256(line)
        lines.append(line + b"\n")
    return b"".join(lines), (seq, digest)


def followed(file: Path, last: Link) -> Link:
    """The end of the chain of lines in `file` that follow `last`; `last` where there are none."""
    seq, digest = last
    with file.open("rb") as stream:
        for raw in stream:
            if raw.startswith(b'{"seq":%d,"prev":"%s",' % (seq + 1, digest.encode())):
                seq, digest = seq + 1, sha256(raw.rstrip(b"\n"))
    return seq, digest


def last_link(file: Path) -> Link:
    """Number and hash of the last line of `file`; number 0 where it is no line of the record."""
    with file.open("rb") as stream:
        raw = b"".join(deque(stream, maxlen=1))
    tree = _parsed(raw)
    return 0 if tree is None else tree["seq"], sha256(raw.rstrip(b"\n"))


def put(handle: int, content: bytes) -> None:
    """Write all of `content`, and wait until the disk has it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def write_head(folder: Path, last: Link) -> None:
    """Say which line is the last, whole or not at all."""
    part = folder / f".{HEAD}.part"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        put(handle, dumped({"seq": last[0], "hash": last[1]}))
    finally:
        os.close(handle)
    part.rename(folder / HEAD)


def read_head(folder: Path) -> Link | None:
    """The line that is the last; None if the file is gone or was changed."""
    try:
        content = (folder / HEAD).read_bytes()
        tree = json.loads(content)
        seq, digest = tree["seq"], tree["hash"]
        good = type(seq) is int and isinstance(digest, str) and content == dumped({"seq": seq, "hash": digest})
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (seq, digest) if good else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a record is found to be."""

    lines: int
    first: str | None
    """Time of the first line, and of the last."""
    last: str | None
    faults: tuple[str, ...]
    """file:line, and what is wrong there; empty where nothing is."""


def verify(folder: Path) -> Verdict:
    """Look at every line of a record; a service may be writing to it meanwhile.

    Lines after the one that head.json names are taken for those of a service that is writing, or was when it crashed.
    """
    # The head first: what is written while the lines are read then comes after it.
    head = read_head(folder)
    scan = _Scan(head)
    for file, day in dated(folder).items():
        # Deleted for its age meanwhile.
        with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                scan.line(f"{file.name}:{number}", raw, str(day) if number == 1 else None)
    scan.end()
    return Verdict(scan.lines, scan.times[0], scan.times[1], tuple(scan.faults))


@dataclass(slots=True)
class _Scan:
    """What is known after some lines."""

    head: Link | None
    lines: int = 0
    times: tuple[str | None, str | None] = (None, None)
    faults: list[str] = field(default_factory=list)
    before: Link | None = None
    """The line before; None where it is not known."""
    start: tuple[str, Link] | None = None
    """Place of the first line, and what it follows."""
    retired: set[Link] = field(default_factory=set)
    at_head: str | None = None
    """Hash of the line with the head's number."""

    def line(self, where: str, raw: bytes, opens: str | None) -> None:
        """Look at a line; `opens` is the day of the file that it is the first of."""
        self.lines += 1
        content = raw.removesuffix(b"\n")
        tree = _parsed(content)
        if tree is None or content == raw:
            self._fault(where, "is cut off" if content == raw else "is no line of the record")
            self.before = None
            return
        self._follows(where, tree["seq"], tree["prev"])
        self.before = (tree["seq"], sha256(content))
        if self.head and tree["seq"] == self.head[0]:
            self.at_head = self.before[1]
        note, time = tree.get("note"), tree.get("time")
        if (tree.get("day") if note == OPENED else None) != opens:
            self._fault(where, "is not where it was: the first line of a file names its day, and no other does")
        if note == RETIRED and isinstance(seq := tree.get("last_seq"), int):
            self.retired.add((seq, str(tree.get("last_hash"))))
        if isinstance(time, str):
            self.times = (self.times[0] or time, time)

    def _follows(self, where: str, seq: int, prev: str) -> None:
        if self.start is None:
            self.start = (where, (seq - 1, prev))
        elif self.before is None:
            return
        elif seq != self.before[0] + 1:
            self._fault(where, f"has number {seq} after {self.before[0]}: lines are missing, put in, or moved")
        elif prev != self.before[1]:
            self._fault(where, f"does not follow from the line before it, number {seq - 1}: one of both was changed")

    def end(self) -> None:
        """Hold both ends against what is known of them."""
        if self.start and self.start[1] not in {START, *self.retired}:
            before = self.start[1][0]
            self._fault(self.start[0], f"is the first line; number {before} before it is gone, and not for its age")
        if self.head is None:
            self._fault(f"{HEAD}:1", "is gone or was changed: whether the end was cut off cannot be told")
        elif self.head != START and self.at_head is None:
            self._fault(f"{HEAD}:1", f"names number {self.head[0]}, which is not there: the end was cut off")
        elif self.head != START and self.at_head != self.head[1]:
            self._fault(f"{HEAD}:1", f"names another line number {self.head[0]} than is there: one of both was changed")

    def _fault(self, where: str, what: str) -> None:
        self.faults.append(f"{where} {what}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of the record; None if it is none."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(tree, dict) and type(tree.get("seq")) is int and isinstance(tree.get("prev"), str)
    return tree if good else None
