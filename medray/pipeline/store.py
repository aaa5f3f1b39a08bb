"""The store of whole images: every case read and preprocessed once, kept as one memory-mapped array on the local disk.

A store is a folder named by the content of its sources and the preprocessing: `images.npy` (N, C, *S) and
`index.json`. Ranks of a node, folds and trials share it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medray.cluster import Mapper
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read
from medray.pipeline.shelf import (
    CHUNK_CASES,
    SPARE_BYTES,
    ChunkReport,
    Refusal,
    StoreError,
    keep,
    key_of,
    nearest_copy,
    no_space,
    no_store,
    read_index,
)
from medray.sections.data import PreprocessSection
from medray.types import Array, Case, CaseRef, InputError

VERSION = 1
IMAGES = "images.npy"


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


def open_store(folder: Path, refs: Sequence[CaseRef]) -> Store:
    """The store in `folder`; `refs` name its rows.

    Raises:
        StoreError: if there is no whole store.
    """
    try:
        index, refused = read_index(folder, refs)
        # Copy-on-write: torch wants a writable array, and nothing may reach the file.
        images = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise no_store(folder, error) from None
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
    keep(folder, refs, partial(_fill, refs=refs, cfg=cfg, mapper=mapper))
    return open_store(folder, refs)


def store_key(refs: Sequence[CaseRef], cfg: PreprocessSection, root: Path) -> str:
    """Hash of what the store will hold: the content of each source, in order, and the preprocessing."""
    return key_of(refs, f"{VERSION} {cfg.model_dump_json()}", root)


def on_this_node(folder: Path, refs: Sequence[CaseRef], cfg: PreprocessSection) -> Store:
    """The store on a disk of this node, see `nearest_copy`."""
    return open_store(nearest_copy(folder, lambda scratch: build(refs, cfg, scratch).folder), refs)


def _fill(folder: Path, refs: Sequence[CaseRef], cfg: PreprocessSection, mapper: Mapper[Any, Any]) -> list[ChunkReport]:
    """Write the array of all cases into `folder`."""
    example = _first_readable(refs, cfg)
    file = folder / IMAGES
    _allocate(file, (len(refs), *example.image.shape), stored_dtype(example.image, cfg))
    starts = range(0, len(refs), CHUNK_CASES)
    chunks = [Chunk(file, start, tuple(refs[start : start + CHUNK_CASES]), cfg) for start in starts]
    return list(mapper(_write_chunk, chunks))


def stored_dtype(image: Array, cfg: PreprocessSection) -> np.dtype[Any]:
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
        raise no_space(file.parent.parent, size)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    del array
    with file.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _write_chunk(chunk: Chunk) -> ChunkReport:
    """Read, preprocess and write the rows of one chunk."""
    images = np.load(chunk.file, mmap_mode="r+", allow_pickle=False)
    refused, warnings = [], Counter[str]()
    for row, ref in enumerate(chunk.refs, start=chunk.first_row):
        try:
            case = _prepare_case(ref, chunk.cfg)
            _check_fits(case.image, images)
        except InputError as error:
            refused.append(Refusal.of(row, ref.case_id, error))
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
