"""What is kept of a case that is done: `answer.json` in its folder, by which a later command knows that it is.

A case's folder appears whole, with its record in it, by one renaming: there is nothing that a kill could leave half.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray.config import ConfigError
from medray.types import InputError, SeriesRef

ANSWER = "answer.json"
"""Name of the record in the case's folder."""
LISTS = ("labels", "conformal_set", "warnings", "error")
"""Fields that JSON gives back as lists."""
FORMAT = 1
PART, OLD = ".part", ".old"
"""Endings of hidden folders that are on their way in and out."""
PASSING = frozenset({"failed", "out_of_memory", "too_large_for_memory", "worker_died", "not_readable", "not_found"})
"""Refusals that say nothing of the case itself: it is tried again."""


@dataclass(frozen=True, slots=True)
class Record:
    """The answer for one case, or why there is none, as plain JSON holds it."""

    name: str
    """Of its folder."""
    place: str
    """The absolute path of the image."""
    content: str
    """sha256 that names the image's bytes; empty where they could not be read."""
    key: str
    """sha256 over the content, the model and what was asked for."""
    labels: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    """Class -> probability."""
    volumes: Mapping[str, float] = field(default_factory=dict)
    """Structure -> its size in `unit`."""
    unit: str = ""
    """Of `volumes`: ml, mm2 or voxels."""
    conformal_set: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    """Name of a file in the folder -> its bytes."""
    error: tuple[str, str, str] | None = None
    """Code, detail and hint of an InputError."""

    def is_done(self, folder: Path, key: str, retry: bool) -> bool:
        """Whether nothing is left to do for `key`: the answer is there with its files, or a refusal that stays."""
        if self.key != key or not self.content:
            return False
        if self.error:
            return not retry and self.error[0] not in PASSING
        return all(_size(folder / name) == size for name, size in self.files.items())


def refused(name: str, place: Path, content: str, key: str, error: InputError) -> Record:
    """The record of a case without an answer."""
    return Record(name, str(place.absolute()), content, key, error=(error.code, error.detail, error.hint))


def load(folder: Path) -> Record | None:
    """The record in `folder`; None where there is none that can be understood."""
    try:
        tree = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            return None
        lists = {name: tuple(tree[name]) for name in LISTS if tree[name] is not None}
        return Record(**{**tree, **lists, "name": folder.name})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


@contextmanager
def new_folder(out: Path, name: str) -> Iterator[Path]:
    """An empty folder in `out` that takes the place of `name` when the block ends, and is removed where it raises."""
    token = secrets.token_hex(8)
    part, old, target = out / f".{token}{PART}", out / f".{token}{OLD}", out / name
    part.mkdir()
    try:
        yield part
        if target.exists():
            target.rename(old)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def put(folder: Path, record: Record) -> None:
    """Write the record into its folder, which is not yet at its place."""
    tree: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(record)}
    (folder / ANSWER).write_text(json.dumps(tree, indent=1), encoding="utf-8")


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Make `out`, keep other commands out of it, and clear away what a killed one left.

    Raises:
        ConfigError: another one is at work there, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise ConfigError([f"--out: '{out}' cannot be written: {error.strerror}"]) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"--out: another command writes to '{out}'; wait, or take another folder"]) from None
        for left in out.glob(".*"):
            if left.name.endswith((PART, OLD)):
                shutil.rmtree(left, ignore_errors=True)
        yield


def content_of(source: Path | SeriesRef) -> str:
    """sha256 that names the bytes of an image, whatever its files are called; empty where they cannot be read."""
    files, time = (source.files, source.time) if isinstance(source, SeriesRef) else ((source,), None)
    try:
        digests = sorted(_sha256(file) for file in files)
    except OSError:
        return ""
    return hashlib.sha256("\n".join([*digests, str(time)]).encode()).hexdigest()


def key_of(content: str, asked: str) -> str:
    """Names an answer: the image's content, and all of the model and the options that it depends on."""
    return hashlib.sha256(f"{FORMAT}\n{content}\n{asked}".encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
