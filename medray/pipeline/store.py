"""The store: every case read and preprocessed once, kept as one memory-mapped array on the local disk.

A store is a folder named by the content of its sources and the preprocessing: `images.npy` (N, C, *S) and
`index.json`. It is written beside its place and renamed when whole, so a folder of that name is a whole store.
Ranks of a node, folds and trials share it.
"""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medray.cluster import Mapper
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read
from medray.pipeline.hashes import HASHES, file_hashes, files_of
from medray.sections.data import PreprocessSection
from medray.types import Array, ArrayRef, Case, CaseRef, InputError, SeriesRef

VERSION = 1
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


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Preprocessed images, one row per case of the dataset; rows of refused cases hold zeros."""

    folder: Path
    images: Array
    """(N, C, *S), memory-mapped; writes stay in this process."""
    refused: tuple[Refusal, ...]
    warnings: dict[str, int]
    """How many cases carry each warning."""

    @property
    def key(self) -> str:
        """Hash of the sources' content and the preprocessing."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of store building: some rows, where they go, and what a row must look like."""

    file: Path
    first_row: int
    refs: tuple[CaseRef, ...]
    cfg: PreprocessSection


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """What became of a chunk."""

    refused: tuple[Refusal, ...]
    warnings: Counter[str]


def open_store(folder: Path, refs: Sequence[CaseRef]) -> Store:
    """The store in `folder`; `refs` name its rows.

    Raises:
        StoreError: if there is no whole store.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        # Copy-on-write: torch wants a writable array, and nothing may reach the file.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise StoreError(f"no whole store in {folder}: {error}; delete the folder and run again") from None
    refused = tuple(Refusal(row, refs[row].case_id, *reason) for row, *reason in index["refused"])
    return Store(folder, images, refused, index["warnings"])


def build(refs: Sequence[CaseRef], cfg: PreprocessSection, root: Path, mapper: Mapper[Any, Any] = map) -> Store:
    """The store of `refs` under `root`, built unless it is there.

    Args:
        refs: one row each, in order.
        cfg: the preprocessing.
        root: a folder on a local disk; it also keeps the cache of file hashes.
        mapper: `map`, or `cluster.parallel_map` to build on many CPUs.

    Raises:
        StoreError: no case can be read, or the disk has no room.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / store_key(refs, cfg, root)
    with _locked(root / f"{folder.name}.lock"):
        if not (folder / "index.json").is_file():
            _build_into(folder, refs, cfg, mapper)
    return open_store(folder, refs)


def store_key(refs: Sequence[CaseRef], cfg: PreprocessSection, root: Path) -> str:
    """Hash of what the store will hold: the content of each source, in order, and the preprocessing."""
    digest = hashlib.sha256(f"{VERSION} {cfg.model_dump_json()}".encode())
    hashes = file_hashes({file for ref in refs for file in files_of(ref)}, root / HASHES)
    for ref in refs:
        content = " ".join(sorted(hashes[file] for file in files_of(ref)))
        digest.update(f"{content} {_place(ref)}\n".encode())
    return digest.hexdigest()[:24]


def _place(ref: CaseRef) -> str:
    """Which image of its files a case is."""
    match ref.source:
        case ArrayRef(_, member, index):
            return f"{member} {index}"
        case SeriesRef(_, time):
            return f"time {time}"
    return ""


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process of this node at a time; the lock goes with the process that holds it."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_into(folder: Path, refs: Sequence[CaseRef], cfg: PreprocessSection, mapper: Mapper[Any, Any]) -> None:
    """Write the store beside its place and rename it when whole."""
    example = _first_readable(refs, cfg)
    partial_folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        file = partial_folder / "images.npy"
        _allocate(file, (len(refs), *example.image.shape), _stored_dtype(example.image, cfg))
        starts = range(0, len(refs), CHUNK_CASES)
        chunks = [Chunk(file, start, tuple(refs[start : start + CHUNK_CASES]), cfg) for start in starts]
        reports = list(mapper(_write_chunk, chunks))
        index = {
            # Without names: the same content under other names is the same store.
            "refused": [[r.row, r.code, r.detail, r.hint] for report in reports for r in report.refused],
            "warnings": dict(sum((report.warnings for report in reports), Counter())),
            "host": platform.node(),
            # By content, too: what `medray erase` finds a person by.
            "sources": sorted(file_hashes({f for ref in refs for f in files_of(ref)}, folder.parent / HASHES).values()),
        }
        _write_synced(partial_folder / "index.json", json.dumps(index))
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(folder.parent, 0) from None
        raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _write_synced(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _stored_dtype(image: Array, cfg: PreprocessSection) -> np.dtype[Any]:
    """Integers as they are (their preprocessing is lossless), floats as the experiment says."""
    return image.dtype if np.issubdtype(image.dtype, np.integer) else np.dtype(cfg.dtype)


def _prepare_case(ref: CaseRef, cfg: PreprocessSection) -> Case:
    return preprocess(read(ref.source), cfg)


def _first_readable(refs: Sequence[CaseRef], cfg: PreprocessSection) -> Case:
    """The first case that can be prepared: its shape and type are the store's."""
    first_error: InputError | None = None
    for ref in refs:
        try:
            return _prepare_case(ref, cfg)
        except InputError as error:
            first_error = first_error or error
    raise StoreError(f"none of {len(refs)} cases can be read; the first says {first_error}")


def _allocate(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Reserve the array's space on the disk, so that a full disk is an error here and not a crash later."""
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if shutil.disk_usage(file.parent).free < size + SPARE_BYTES:
        raise _no_space(file.parent.parent, size)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    del array
    with file.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _no_space(root: Path, size: int) -> StoreError:
    free = shutil.disk_usage(root).free
    need = f"needs {size / 2**20:.0f} MiB, " if size else "ran out of space; "
    return StoreError(
        f"the store in {root} {need}{free / 2**20:.0f} MiB are free; "
        "make room, set MEDRAY_HOME to a larger disk, or lower preprocess.size"
    )


def _write_chunk(chunk: Chunk) -> ChunkReport:
    """Read, preprocess and write the rows of one chunk."""
    images = np.load(chunk.file, mmap_mode="r+", allow_pickle=False)
    refused, warnings = [], Counter[str]()
    for row, ref in enumerate(chunk.refs, start=chunk.first_row):
        try:
            case = _prepare_case(ref, chunk.cfg)
            _check_fits(case.image, images)
        except InputError as error:
            refused.append(Refusal(row, ref.case_id, error.code, error.detail, error.hint))
            continue
        images[row] = case.image
        warnings.update(case.warnings)
    images.flush()
    return ChunkReport(tuple(refused), warnings)


def _check_fits(image: Array, images: Array) -> None:
    """Refuse a case that does not look like the first one on the network's grid."""
    if image.shape[0] != images.shape[1]:
        raise InputError(
            "wrong_channels",
            f"{image.shape[0]} channels, the first case has {images.shape[1]}",
            "set preprocess.channels to gray or rgb",
        )
    if image.shape[1:] != images.shape[2:]:
        raise InputError(
            "shape_mismatch",
            f"grid {image.shape[1:]} differs from {images.shape[2:]} of the first case",
            "set preprocess.size",
        )
    if not np.can_cast(image.dtype, images.dtype, casting="same_kind" if images.dtype.kind == "f" else "safe"):
        raise InputError(
            "dtype_mismatch",
            f"{image.dtype} pixels, the first case has {images.dtype}",
            "use preprocess.intensity.method percentile or zscore for mixed pixel types",
        )


def on_this_node(folder: Path, refs: Sequence[CaseRef], cfg: PreprocessSection) -> Store:
    """The store on a disk of this node: the one in `folder` if it was built here, else a copy, else built anew.

    Copies lie in the temporary folder: `folder` itself may be on a filesystem that the nodes share.
    """
    scratch = Path(tempfile.gettempdir()) / "medray-stores"
    if not (folder / "index.json").is_file():
        return build(refs, cfg, scratch)
    if json.loads((folder / "index.json").read_text(encoding="utf-8"))["host"] == platform.node():
        return open_store(folder, refs)
    scratch.mkdir(parents=True, exist_ok=True)
    with _locked(scratch / f"{folder.name}.lock"):
        copy = scratch / folder.name
        if not (copy / "index.json").is_file():
            partial_copy = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=scratch))
            shutil.copytree(folder, partial_copy, dirs_exist_ok=True)
            partial_copy.rename(copy)
    return open_store(copy, refs)
