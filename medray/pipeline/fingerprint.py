"""The fingerprint of a dataset: what a plan needs to know of its images and labels, and nothing else of them.

As in nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z, 'dataset fingerprint'): shapes and spacings after the crop to
what is not background, intensities of foreground voxels, class volumes. Every case is read once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from medray.cluster import Mapper
from medray.imaging import reader
from medray.imaging.geometry import crop_foreground, to_ras
from medray.pipeline.survey import Chunk, Read, chunks, label_of
from medray.types import Array, Case, CaseRef, Dataset, InputError

SAMPLED_VOXELS = 10_000
"""Voxels of a case that stand for its intensities, as in nnU-Net."""
PERCENTS = (0.5, 50.0, 99.5)
Watch = Callable[[int, int], None]
"""Told how many cases of how many are done."""


@dataclass(frozen=True, slots=True)
class Intensities:
    """Of a sample of voxels, over all channels."""

    low: float
    """Percentile 0.5."""
    median: float
    high: float
    """Percentile 99.5."""
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class CasePrint:
    """One case; volumes in RAS+ order."""

    case_id: str
    shape: tuple[int, ...]
    """(*S)"""
    cropped: tuple[int, ...]
    """(*S) of the box of voxels above the minimum, what preprocess.crop_foreground leaves."""
    spacing: tuple[float, ...]
    unit: str
    modality: str
    channels: int
    dtype: str
    low: float
    high: float
    two_valued: bool
    """Whether the image is a mask, with one value beside its minimum."""
    whole: Intensities
    foreground: Intensities | None
    """Over voxels of any class but the first; None without a label map, or where it holds the first alone."""
    voxels: tuple[int, ...]
    """Of each class in the label map; empty without one."""

    @property
    def removed(self) -> float:
        """Share of the voxels that the crop takes away."""
        return 1 - prod(self.cropped) / prod(self.shape)

    @property
    def volumes(self) -> tuple[float, ...]:
        """Of each class, in `unit` to the power of the axes."""
        return tuple(count * prod(self.spacing) for count in self.voxels)


@dataclass(frozen=True, slots=True)
class Left:
    """A case that could not be read, with the reader's word."""

    case_id: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A dataset, measured."""

    cases: tuple[CasePrint, ...]
    """Those with the most common number of axes."""
    left_out: tuple[Left, ...]
    classes: tuple[str, ...]
    class_cases: tuple[int, ...]
    """Cases that hold each class: by their own class, or in their label map."""
    labelled: bool
    """Whether cases have label maps."""
    foreground: Intensities | None
    """Of the samples of all cases together."""
    whole: Intensities

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.cases[0].shape)

    @property
    def in_mm(self) -> bool:
        """Whether every case says its spacing."""
        return all(case.unit == "mm" for case in self.cases)

    @property
    def spacings(self) -> Array:
        """(N, d)"""
        return np.array([case.spacing for case in self.cases])

    def shapes(self, cropped: bool) -> Array:
        """(N, d) voxels along each axis, before or after the crop."""
        return np.array([case.cropped if cropped else case.shape for case in self.cases])

    def common(self, fact: str) -> Counter[Any]:
        """How often each value of a field of the cases occurs."""
        return Counter(getattr(case, fact) for case in self.cases)

    def as_json(self) -> str:
        """All of it, with the medians that a plan goes by."""
        medians = {
            "spacing": np.median(self.spacings, axis=0).tolist(),
            "shape": np.median(self.shapes(False), axis=0).tolist(),
            "cropped": np.median(self.shapes(True), axis=0).tolist(),
            "removed": float(np.median([case.removed for case in self.cases])),
        }
        if self.labelled:
            medians["volumes"] = np.median([case.volumes for case in self.cases if case.voxels], axis=0).tolist()
        return json.dumps({"medians": medians, **asdict(self)}, indent=1)


def fingerprint(
    dataset: Dataset, mapper: Mapper[Any, Any] = map, read: Read = reader.read, watch: Watch | None = None
) -> Fingerprint:
    """Measure every case of a dataset; what cannot be read is listed and left out.

    Args:
        dataset: references to its cases.
        mapper: `map`, or `cluster.parallel_map` to read on many CPUs.
        read: Source -> Case, picklable (see `survey.Read`).
        watch: called after each chunk of cases.

    Raises:
        InputError: `no_cases`, where none can be read.
    """
    measured: list[_Measured] = []
    for part in mapper(_measure_chunk, list(chunks(dataset, read))):
        measured += part
        if watch:
            watch(len(measured), len(dataset.refs))
    read_well = [item for item in measured if item.case is not None]
    if not read_well:
        first = next(item.left for item in measured if item.left)
        raise InputError(
            "no_cases", f"none of {len(measured)} cases can be read; the first: {first.code}", first.detail
        )
    rank = Counter(len(item.case.shape) for item in read_well if item.case).most_common(1)[0][0]
    fits = [item.case is not None and len(item.case.shape) == rank for item in measured]
    kept = [item for item, fit in zip(measured, fits, strict=True) if fit]
    cases = tuple(item.case for item in kept if item.case)
    odd = [
        Left(item.case.case_id, "wrong_rank", f"{len(item.case.shape)} axes, most cases have {rank}")
        for item, fit in zip(measured, fits, strict=True)
        if item.case and not fit
    ]
    refs = [ref for ref, fit in zip(dataset.refs, fits, strict=True) if fit]
    inside = [item.inside for item in kept if item.inside is not None and item.inside.size]
    return Fingerprint(
        cases=cases,
        left_out=(*(item.left for item in measured if item.left), *odd),
        classes=dataset.classes,
        class_cases=_class_cases(dataset.classes, refs, cases),
        labelled=any(ref.label_map is not None for ref in refs),
        foreground=_intensities(np.concatenate(inside)) if inside else None,
        whole=_intensities(np.concatenate([item.sample for item in kept])),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A case and its samples, or why there is none."""

    case: CasePrint | None
    sample: Array
    inside: Array | None = None
    left: Left | None = None


def _measure_chunk(chunk: Chunk) -> list[_Measured]:
    """Read and measure the cases of a chunk."""
    return [_measure(ref, chunk) for ref in chunk.refs]


def _measure(ref: CaseRef, chunk: Chunk) -> _Measured:
    """One case; its image and label are let go at once."""
    try:
        case = chunk.read(ref.source)
        label = label_of(ref, case, chunk.values, chunk.names)
    except InputError as error:
        return _Measured(None, np.empty(0), left=Left(ref.case_id, error.code, error.detail))
    draw = np.random.default_rng(0)
    case = to_ras(case)
    sample = _sampled(case.image.reshape(-1), draw)
    inside, voxels = (None, ()) if label is None else _inside(case, to_ras(label), chunk, draw)
    low, high = float(case.image.min()), float(case.image.max())
    found = CasePrint(
        case_id=ref.case_id,
        shape=case.image.shape[1:],
        cropped=crop_foreground(case).image.shape[1:],
        spacing=tuple(round(edge, 6) for edge in case.spacing),
        unit=case.unit,
        modality=case.modality,
        channels=len(case.image),
        dtype=str(case.image.dtype),
        low=low,
        high=high,
        two_valued=bool(np.isin(sample, (low, high)).all()),
        whole=_intensities(sample),
        foreground=_intensities(inside) if inside is not None and inside.size else None,
        voxels=voxels,
    )
    return _Measured(found, sample, inside)


def _inside(case: Case, label: Case, chunk: Chunk, draw: np.random.Generator) -> tuple[Array, tuple[int, ...]]:
    """A sample of foreground intensities, and the voxels of each class."""
    values = chunk.values[: len(chunk.names)]
    flat = label.image.reshape(-1)
    counts = np.bincount(flat, minlength=max(chunk.values, default=0) + 1) if values else np.zeros(0, np.int64)
    mask = np.isin(flat, values[1:]) if len(values) > 1 else flat != 0
    places = _sampled(np.flatnonzero(mask), draw)
    pixels = case.image.reshape(len(case.image), -1)[:, places]
    return pixels.reshape(-1).astype(np.float32), tuple(int(counts[value]) for value in values)


def _sampled(values: Array, draw: np.random.Generator) -> Array:
    """At most SAMPLED_VOXELS of `values`, float32 or indices, drawn with replacement where there are more."""
    if values.size > SAMPLED_VOXELS:
        values = values[draw.integers(values.size, size=SAMPLED_VOXELS)]
    return values if values.dtype == np.int64 else values.astype(np.float32)


def _intensities(sample: Array) -> Intensities:
    low, median, high = np.percentile(sample, PERCENTS).tolist()
    return Intensities(low, median, high, float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64)))


def _class_cases(classes: tuple[str, ...], refs: Sequence[CaseRef], cases: Sequence[CasePrint]) -> tuple[int, ...]:
    """Cases that hold each class."""
    held = [
        set(ref.target) | {index for index, count in enumerate(case.voxels) if count}
        for ref, case in zip(refs, cases, strict=True)
    ]
    return tuple(sum(index in found for found in held) for index in range(len(classes)))
