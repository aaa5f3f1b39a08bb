"""What a check keeps of each case: numbers, hashes and a thumbnail of 64 x 64; the pixels are let go at once."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medray.imaging import quality, reader
from medray.imaging.geometry import to_ras
from medray.pipeline.hashes import files_of
from medray.sections.data import PreprocessSection
from medray.types import Array, ArrayRef, Case, CaseRef, Dataset, InputError

Read = Callable[[Any], Case]
"""Source -> Case, raising InputError alone. Picklable, and called in the worker: a reader that owns a process or
another thing that cannot travel makes it there at its first call."""

THUMBNAIL = 64
"""Edge of a thumbnail; a volume is 16 slices of 16 x 16 in it."""
SAMPLE_VOXELS = 1 << 20
"""Percentiles and the share of foreground are taken from at most about so many voxels."""
LARGE_VOXELS = 1 << 22
CHUNK_BYTES, CHUNK_CASES = 4 << 20, 32


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a reader refused the image or the label map of a case."""

    code: str
    detail: str
    hint: str
    of: Literal["image", "label"] = "image"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One case, measured; where the image was refused there are only `faults`."""

    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    channels: int = 0
    shape: tuple[int, ...] = ()
    """(*S)"""
    spacing: tuple[float, ...] = ()
    unit: str = ""
    orientation: str = ""
    """Where the axes of a volume point, as in 'RAS'; empty in 2D."""
    modality: str = ""
    dtype: str = ""
    low: float = math.nan
    p01: float = math.nan
    mean: float = math.nan
    p99: float = math.nan
    high: float = math.nan
    foreground: float = math.nan
    """Share of voxels above the minimum: what preprocess.crop_foreground goes by."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """See imaging/quality.py."""
    sha256: str = ""
    """Of shape, type and pixels as decoded: equal for equal images in files of different formats."""
    thumbnail: Array | None = None
    """(64, 64) uint8, the image or RAS+ volume between its percentiles 0.5 and 99.5."""
    label_sha256: str = ""
    voxels: tuple[int, ...] = ()
    """Label voxels of each legal value (see `Survey.voxels`); empty without a label map."""

    @property
    def readable(self) -> bool:
        """Whether the image was read."""
        return bool(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A dataset with what was measured of it, one entry per case in order."""

    dataset: Dataset
    cases: tuple[Measured, ...]
    places: tuple[str, ...]
    """The split that each case is in; empty where there is none."""
    preprocess: PreprocessSection
    max_bad_fraction: float

    def ids(self, rows: Sequence[int]) -> tuple[str, ...]:
        """The case ids of `rows`."""
        return tuple(self.dataset.refs[row].case_id for row in rows)

    @property
    def readable(self) -> list[int]:
        """Rows whose image was read."""
        return [row for row, case in enumerate(self.cases) if case.readable]

    def labels(self, row: int) -> tuple[int, ...]:
        """Classes of a case: its targets, or those that its boxes or its label map hold, background left out."""
        ref = self.dataset.refs[row]
        if ref.boxes:
            return tuple(sorted({box.target for box in ref.boxes}))
        held = zip(self.dataset.legal_values, self.voxels(row), strict=False)
        return ref.target or tuple(label for label, (value, count) in enumerate(held) if value and count)

    def voxels(self, row: int) -> tuple[int, ...]:
        """Label voxels of each class of a case, without those that nobody labelled; empty without a label map."""
        return self.cases[row].voxels[: len(self.dataset.classes)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of surveying."""

    refs: tuple[CaseRef, ...]
    values: tuple[int, ...]
    """What a label map holds for each class of the dataset."""
    names: tuple[str, ...]
    """The classes."""
    read: Read


def chunks(dataset: Dataset, read: Read) -> Iterator[Chunk]:
    """The cases in order, some at once where they are small: handing on a task costs as much as reading a PNG."""
    held: list[CaseRef] = []
    size = 0
    for ref in dataset.refs:
        held.append(ref)
        # Rows of an array file are small, however large the file is.
        size += 0 if isinstance(ref.source, ArrayRef) else sum(_size(file) for file in files_of(ref))
        if size >= CHUNK_BYTES or len(held) == CHUNK_CASES:
            yield Chunk(tuple(held), dataset.legal_values, dataset.classes, read)
            held, size = [], 0
    if held:
        yield Chunk(tuple(held), dataset.legal_values, dataset.classes, read)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def measure_chunk(chunk: Chunk) -> tuple[Measured, ...]:
    """Read and measure the cases of a chunk."""
    return tuple(measure(ref, chunk.values, chunk.read, chunk.names) for ref in chunk.refs)


def measure(ref: CaseRef, values: tuple[int, ...], read: Read = reader.read, names: tuple[str, ...] = ()) -> Measured:
    """Read and measure one case with its label map; what the readers refuse is a fault of it, never an exception."""
    try:
        case = read(ref.source)
    except InputError as error:
        return Measured(faults=(Fault(error.code, error.detail, error.hint),))
    faults: tuple[Fault, ...] = ()
    warnings, digest = case.warnings, ""
    voxels: tuple[int, ...] = ()
    try:
        label = label_of(ref, case, values, names)
        if label is not None:
            warnings += tuple(word for word in label.warnings if word not in warnings)
            digest, voxels = _digest(label.image), _count(label.image, values) if values else ()
    except InputError as error:
        faults = (Fault(error.code, error.detail, error.hint, "label"),)
    image = case.image
    sample = image.reshape(-1)[:: (image.size // SAMPLE_VOXELS) | 1]
    p01, p99 = np.percentile(sample, [1, 99])
    low = image.min()
    return Measured(
        faults=faults,
        warnings=warnings,
        channels=len(image),
        shape=image.shape[1:],
        spacing=case.spacing,
        unit=case.unit,
        orientation=orientation_of(case),
        modality=case.modality,
        dtype=str(image.dtype),
        low=float(low),
        p01=float(p01),
        mean=float(image.mean(dtype=np.float64)),
        p99=float(p99),
        high=float(image.max()),
        foreground=float(np.count_nonzero(sample > low) / sample.size),
        quality=quality.measure(case),
        sha256=_digest(image),
        thumbnail=thumbnail(case),
        label_sha256=digest,
        voxels=voxels,
    )


def label_of(ref: CaseRef, case: Case, values: tuple[int, ...], names: tuple[str, ...] = ()) -> Case | None:
    """The label map of a case, or None where it has none.

    Raises InputError as medray.imaging.labels.read_label and load.
    """
    if ref.label_map is None:
        return None
    from medray.imaging import labels

    if not values:
        return labels.load(ref.label_map, case).case
    return labels.read_label(ref.label_map, case, values, names)


def _digest(image: Array) -> str:
    digest = hashlib.sha256(f"{image.shape} {image.dtype.str}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _count(label: Array, values: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels of each class; any other value was refused by the reader."""
    counts = np.bincount(label.reshape(-1), minlength=max(values) + 1)
    return tuple(int(counts[value]) for value in values)


def orientation_of(case: Case) -> str:
    """Where the axes of a volume point, each to its closest letter (R or L, A or P, S or I); '' in 2D."""
    if case.spatial_dims != 3:
        return ""
    direction = case.affine[:3, :3] / np.linalg.norm(case.affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda world: abs(direction[world, range(3)]).sum())
    return "".join("RAS"[world] if direction[world, axis] > 0 else "LPI"[world] for axis, world in enumerate(best))


def thumbnail(case: Case) -> Array:
    """(64, 64) uint8: the mean of the channels; of a volume in RAS+ order 16 slices of 16 x 16, row by row."""
    image = to_ras(case).image
    flat = image[0] if len(image) == 1 else image.mean(axis=0, dtype=np.float32)
    if flat.ndim == 2:
        small = shrink(flat, (THUMBNAIL, THUMBNAIL))
    else:
        slices = shrink(flat, (16, 16, 16)).transpose(2, 0, 1).reshape(4, 4, 16, 16)
        small = slices.transpose(0, 2, 1, 3).reshape(THUMBNAIL, THUMBNAIL)
    return grey(small)


def grey(image: Array) -> Array:
    """uint8 between the image's percentiles 0.5 and 99.5; a constant image is black."""
    low, high = np.percentile(image, [0.5, 99.5])
    scaled = (image - low) / (high - low) if high > low else np.zeros(image.shape, np.float32)
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), np.uint8)


def shrink(image: Array, size: Sequence[int]) -> Array:
    """`image` on a grid of shape `size`, float64: means of blocks where an axis shrinks, repeats where it grows."""
    for axis, edge in enumerate(size):
        length = image.shape[axis]
        starts = np.arange(edge) * length // edge
        stops = np.maximum(starts + 1, np.append(starts[1:], length))
        if axis == 0 and image.size > LARGE_VOXELS:
            # reduceat would first take a copy of all of it in float64.
            means = [
                image[start:stop].mean(axis=0, dtype=np.float64) for start, stop in zip(starts, stops, strict=True)
            ]
            image = np.stack(means)
        else:
            sums: Array = np.add.reduceat(image, starts, axis=axis, dtype=np.float64)
            image = sums / (stops - starts).reshape([-1 if other == axis else 1 for other in range(image.ndim)])
    return np.asarray(image)
