"""The store of dense tasks: every case with its label on a grid of its own, as memory-mapped arrays on the local disk.

A store is a folder as in shelf.py: `NNNNNN.image.npy` (C, *S), `NNNNNN.label.npy` (*S) uint8 (the index of each voxel's
class, IGNORED where nobody labelled) and `NNNNNN.places.npy` (K, PLACES) int64, voxels of each class drawn once, by
which a patch is put on a class without a look at the label. A patch is read from the page cache, the case never whole.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from medray.cluster import Mapper
from medray.imaging.geometry import Grid, grid_of, onto_label
from medray.imaging.labels import read_label
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read
from medray.pipeline.shelf import (
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
from medray.pipeline.store import stored_dtype
from medray.sections.data import PreprocessSection
from medray.types import IGNORED, Array, Case, CaseRef, Dataset, InputError

VERSION = 2
PLACES = 256
"""Voxels of each class that are remembered of a case (drawn with replacement); -1 where the class does not occur."""
CASES_AT_ONCE = 4
OPEN_CASES = 8192
"""Memory maps kept open; each is two of the 65,530 that Linux allows a process."""


@dataclass(frozen=True, slots=True, eq=False)
class CaseStore:
    """Preprocessed images and labels, one row per case of the dataset."""

    folder: Path
    shapes: Array
    """(N, d) voxels along each axis; 0 of refused cases."""
    channels: int
    counts: Array
    """(N, K) voxels of each class."""
    affines: Array
    """(N, 4, 4) of each case's grid."""
    in_mm: Array
    """(N,) bool, whether the affine is in mm."""
    least: Array
    """(N,) the least value of each case, with which its surroundings are filled."""
    refused: tuple[Refusal, ...]
    warnings: dict[str, int]

    @property
    def key(self) -> str:
        """Hash of the sources' content, the preprocessing and the classes."""
        return self.folder.name

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self.shapes.shape[1])

    def image(self, row: int) -> Array:
        """(C, *S), memory-mapped."""
        return _mapped(self.folder / f"{row:06d}.image.npy")

    def label(self, row: int) -> Array:
        """(*S) uint8, memory-mapped."""
        return _mapped(self.folder / f"{row:06d}.label.npy")

    def places(self, row: int) -> Array:
        """(K, PLACES) flat indices of voxels of each class, -1 where there is none."""
        return _mapped(self.folder / f"{row:06d}.places.npy")


@lru_cache(maxsize=OPEN_CASES)
def _mapped(file: Path) -> Array:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes a case of the store out of its files."""

    preprocess: PreprocessSection
    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    """What a label map holds for each class, in their order."""
    ignored_value: int | None

    @property
    def legal_values(self) -> tuple[int, ...]:
        """What a label map may hold."""
        return self.label_values if self.ignored_value is None else (*self.label_values, self.ignored_value)


def recipe_of(dataset: Dataset, cfg: PreprocessSection) -> Recipe:
    """The recipe for the cases of `dataset`."""
    values = dataset.label_values or tuple(range(len(dataset.classes)))
    return Recipe(cfg, dataset.classes, values, dataset.ignored_value)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of store building."""

    folder: Path
    first_row: int
    refs: tuple[CaseRef, ...]
    recipe: Recipe


def build(refs: Sequence[CaseRef], recipe: Recipe, root: Path, mapper: Mapper[Any, Any] = map) -> CaseStore:
    """The store of `refs` under `root`, built unless it is there.

    Raises:
        StoreError: no case can be read, they differ in axes or channels, or the disk has no room.
    """
    root.mkdir(parents=True, exist_ok=True)
    values = f"{recipe.classes} {recipe.legal_values}"
    folder = root / key_of(refs, f"cases {VERSION} {recipe.preprocess.model_dump_json()} {values}", root)
    keep(folder, refs, partial(_fill, refs=refs, recipe=recipe, mapper=mapper))
    return open_store(folder, refs)


def open_store(folder: Path, refs: Sequence[CaseRef]) -> CaseStore:
    """The store in `folder`; `refs` name its rows.

    Raises:
        StoreError: if there is no whole store.
    """
    try:
        index, refused = read_index(folder, refs)
    except (OSError, ValueError) as error:
        raise no_store(folder, error) from None
    facts = index["facts"]
    first = facts[0]
    shapes = np.zeros((len(refs), len(first["shape"])), np.int64)
    counts = np.zeros((len(refs), len(first["counts"])), np.int64)
    affines = np.tile(np.eye(4), (len(refs), 1, 1))
    in_mm = np.zeros(len(refs), bool)
    least = np.zeros(len(refs))
    for fact in facts:
        row = fact["row"]
        shapes[row], counts[row], affines[row], in_mm[row] = (fact[k] for k in ("shape", "counts", "affine", "mm"))
        least[row] = fact["least"]
    return CaseStore(folder, shapes, first["channels"], counts, affines, in_mm, least, refused, index["warnings"])


def on_this_node(folder: Path, refs: Sequence[CaseRef], recipe: Recipe) -> CaseStore:
    """The store on a disk of this node, see `nearest_copy`."""
    return open_store(nearest_copy(folder, lambda scratch: build(refs, recipe, scratch).folder), refs)


def _fill(folder: Path, refs: Sequence[CaseRef], recipe: Recipe, mapper: Mapper[Any, Any]) -> list[ChunkReport]:
    starts = range(0, len(refs), CASES_AT_ONCE)
    chunks = [Chunk(folder, start, tuple(refs[start : start + CASES_AT_ONCE]), recipe) for start in starts]
    reports = list(mapper(_write_chunk, chunks))
    kept = [fact for report in reports for fact in report.facts]
    refused = [refusal for report in reports for refusal in report.refused]
    if not kept:
        raise StoreError(f"none of {len(refs)} cases can be read; the first says {refused[0]}")
    odd = [f for f in kept if (len(f["shape"]), f["channels"]) != (len(kept[0]["shape"]), kept[0]["channels"])]
    if odd:
        what = f"{odd[0]['channels']} channels and {len(odd[0]['shape'])} axes, the first {kept[0]['channels']}"
        hint = "set preprocess.channels, or train on one kind of image"
        raise StoreError(f"{refs[odd[0]['row']].case_id} has {what} and {len(kept[0]['shape'])}; {hint}")
    return reports


def _write_chunk(chunk: Chunk) -> ChunkReport:
    """Read, preprocess and write some cases with their labels."""
    refused, warnings, facts = [], Counter[str](), []
    for row, ref in enumerate(chunk.refs, start=chunk.first_row):
        try:
            case, label = prepare_case(ref, chunk.recipe)
        except InputError as error:
            refused.append(Refusal.of(row, ref.case_id, error))
            continue
        facts.append(_write_case(chunk, row, case, label))
        warnings.update(case.warnings)
    return ChunkReport(tuple(refused), warnings, tuple(facts))


def prepare_case(ref: CaseRef, recipe: Recipe) -> tuple[Case, Array]:
    """The image on the network's grid, and (*S) uint8 the index of each voxel's class there.

    Raises:
        InputError: as the readers of images and labels do, `no_label` where there is no label map.
    """
    if ref.label_map is None:
        raise InputError("no_label", "the case has no label map", "a dense task needs one for each case")
    raw = read(ref.source)
    label = read_label(ref.label_map, raw, recipe.legal_values, recipe.classes)
    case = preprocess(raw, recipe.preprocess)
    case = replace(case, warnings=(*case.warnings, *(w for w in label.warnings if w == "empty_label")))
    return case, onto_label(class_indices(label, recipe), Grid(*grid_of(case)))


def class_indices(label: Case, recipe: Recipe) -> Case:
    """The label with the index of each voxel's class, IGNORED where nobody labelled, instead of its file's values."""
    table = np.full(max(recipe.legal_values) + 1, IGNORED, np.uint8)
    table[list(recipe.label_values)] = np.arange(len(recipe.label_values), dtype=np.uint8)
    return replace(label, image=table[label.image])


def _write_case(chunk: Chunk, row: int, case: Case, label: Array) -> dict[str, Any]:
    """Write the arrays of one case; what the index keeps of it."""
    image = np.ascontiguousarray(case.image, stored_dtype(case.image, chunk.recipe.preprocess))
    size = image.nbytes + label.nbytes
    if shutil.disk_usage(chunk.folder).free < size + SPARE_BYTES:
        raise no_space(chunk.folder.parent, size)
    classes = len(chunk.recipe.classes)
    np.save(chunk.folder / f"{row:06d}.image.npy", image)
    np.save(chunk.folder / f"{row:06d}.label.npy", label)
    np.save(chunk.folder / f"{row:06d}.places.npy", _draw_places(label, classes, row))
    counts = np.bincount(label.ravel(), minlength=IGNORED + 1)[:classes]
    return {
        "row": row,
        "shape": list(label.shape),
        "channels": len(image),
        "counts": counts.tolist(),
        "affine": case.affine.tolist(),
        "mm": case.unit == "mm",
        "least": float(image.min()),
    }


def _draw_places(label: Array, classes: int, seed: int) -> Array:
    """(K, PLACES) flat indices of voxels of each class."""
    places = np.full((classes, PLACES), -1, np.int64)
    draw = np.random.default_rng(seed)
    flat = label.ravel()
    for value in range(classes):
        there = np.flatnonzero(flat == value)
        if len(there):
            places[value] = np.sort(draw.choice(there, PLACES))
    return places
