"""Folders of prepared cases that are whole or absent: keyed by content, locked while built, shared on a node."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.pipeline.hashes import HASHES, file_hashes, files_of
from medray.types import ArrayRef, CaseRef, InputError, SeriesRef

INDEX = "index.json"
CHUNK_CASES = 16
SPARE_BYTES = 64 << 20
"""Disk space that a store leaves free."""


class StoreError(RuntimeError):
    """The store cannot be built; the message names the thing and the mend."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a case is not in the store."""

    row: int
    case_id: str
    code: str
    detail: str
    hint: str

    def __str__(self) -> str:
        return f"{self.case_id}: {self.code}: {self.detail}" + (f" ({self.hint})" if self.hint else "")

    @staticmethod
    def of(row: int, case_id: str, error: InputError) -> Refusal:
        """The refusal that `error` is of the case in `row`."""
        return Refusal(row, case_id, error.code, error.detail, error.hint)


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """What became of a chunk of cases."""

    refused: tuple[Refusal, ...]
    warnings: Counter[str]
    facts: tuple[Any, ...] = ()
    """What JSON can hold of each case that is not refused, in order, where the store keeps something of it."""


def key_of(refs: Sequence[CaseRef], recipe: str, root: Path) -> str:
    """Hash of what a store will hold: the content of each source and label map, in order, and the `recipe`."""
    digest = hashlib.sha256(recipe.encode())
    hashes = file_hashes(_files(refs), root / HASHES)
    for ref in refs:
        content = " ".join(sorted(hashes[file] for file in files_of(ref)))
        label = f" {hashes[ref.label_map]}" if ref.label_map else ""
        digest.update(f"{content} {_place(ref)}{label}\n".encode())
    return digest.hexdigest()[:24]


def _files(refs: Sequence[CaseRef]) -> set[Path]:
    """Every file that the cases are read from."""
    files = {file for ref in refs for file in files_of(ref)}
    return files | {ref.label_map for ref in refs if ref.label_map}


def _place(ref: CaseRef) -> str:
    """Which image of its files a case is."""
    match ref.source:
        case ArrayRef(_, member, index):
            return f"{member} {index}"
        case SeriesRef(_, time):
            return f"time {time}"
    return ""


def keep(folder: Path, refs: Sequence[CaseRef], fill: Callable[[Path], Sequence[ChunkReport]]) -> None:
    """Have `fill` write a store's arrays into a folder beside `folder`, add its index, and rename it when whole.

    One process of this node at a time; nothing happens where the store is there.

    Raises:
        StoreError: the disk has no room.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{folder.name}.lock"):
        if not (folder / INDEX).is_file():
            _keep(folder, refs, fill)


def _keep(folder: Path, refs: Sequence[CaseRef], fill: Callable[[Path], Sequence[ChunkReport]]) -> None:
    partial_folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        reports = fill(partial_folder)
        index = {
            # Without names: the same content under other names is the same store.
            "refused": [[r.row, r.code, r.detail, r.hint] for report in reports for r in report.refused],
            "warnings": dict(sum((report.warnings for report in reports), Counter())),
            "facts": [fact for report in reports for fact in report.facts],
            "host": platform.node(),
            # By content, too: what `medray erase` finds a person by.
            "sources": sorted(file_hashes(_files(refs), folder.parent / HASHES).values()),
        }
        write_synced(partial_folder / INDEX, json.dumps(index))
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise no_space(folder.parent, 0) from None
        raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def read_index(folder: Path, refs: Sequence[CaseRef]) -> tuple[dict[str, Any], tuple[Refusal, ...]]:
    """The index of the store in `folder`, and the refusals in it with the names that `refs` give the rows."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return index, tuple(Refusal(row, refs[row].case_id, *reason) for row, *reason in index["refused"])


def no_store(folder: Path, error: Exception) -> StoreError:
    """What is said where a store cannot be opened."""
    return StoreError(f"no whole store in {folder}: {error}; delete the folder and run again")


def nearest_copy(folder: Path, build_in: Callable[[Path], Path]) -> Path:
    """A store's folder on a disk of this node: `folder` if it was built here, else a copy, else built anew.

    Copies lie in the temporary folder: `folder` itself may be on a filesystem that the nodes share.
    """
    scratch = Path(tempfile.gettempdir()) / "medray-stores"
    if not (folder / INDEX).is_file():
        return build_in(scratch)
    if json.loads((folder / INDEX).read_text(encoding="utf-8"))["host"] == platform.node():
        return folder
    scratch.mkdir(parents=True, exist_ok=True)
    with _locked(scratch / f"{folder.name}.lock"):
        copy = scratch / folder.name
        if not (copy / INDEX).is_file():
            partial_copy = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=scratch))
            shutil.copytree(folder, partial_copy, dirs_exist_ok=True)
            partial_copy.rename(copy)
    return copy


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process of this node at a time; the lock goes with the process that holds it."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_synced(file: Path, text: str) -> None:
    """Write a small file; the disk has it when this returns."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def no_space(root: Path, size: int) -> StoreError:
    """What is said where `size` bytes (0: nobody knows) find no room."""
    free = shutil.disk_usage(root).free
    need = f"needs {size / 2**20:.0f} MiB, " if size else "ran out of space; "
    return StoreError(
        f"the store in {root} {need}{free / 2**20:.0f} MiB are free; "
        "make room, set MEDRAY_HOME to a larger disk, or lower preprocess.size"
    )
