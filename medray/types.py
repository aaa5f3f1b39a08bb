"""The nouns that every room of medray speaks: Source, Case, CaseRef, Dataset, Batch, Prediction, InputError.

Letters in shapes: B batch, C channel, K class, N cases, S the spatial axes (2 or 3 of them).
World coordinates are RAS+ (right, anterior, superior) as in nibabel; 2D axes are (row, column).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray
Split = Literal["train", "val", "test"]
IGNORED = 255
"""In a stored label: a voxel that nobody labelled, which counts neither in the loss nor in a metric."""


class InputError(Exception):
    """The only exception that bad input may raise.

    `code` is a fixed word, the same in training and in serving; `detail` names the fact, the limit and
    the value, never a path or a patient's data; `hint` says how to mend it.
    """

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        super().__init__(code, detail, hint)
        self.code = code
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """One image inside an array file: `path` (.npz or .npy), array `member` ('' in .npy), first-axis `index`."""

    path: Path
    member: str
    index: int


@dataclass(frozen=True, slots=True)
class SeriesRef:
    """One DICOM series: its files, in any order, and which of its volumes (time points or cine frames)."""

    files: tuple[Path, ...]
    time: int | None = None
    """From 0; None where there is only one, and refused (`time_series`) where there are more."""


Source = Path | ArrayRef | SeriesRef | bytes
"""Where the bytes of one image are: a file, a folder that is one DICOM series, a row of an array file, named
files of a series, or the bytes themselves (a zip of a series too)."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One image of one patient, with its place in the world."""

    case_id: str
    image: Array
    """(C, *S), any real dtype; 2D is (row, column), 3D is nibabel's (i, j, k)."""
    affine: Array
    """(4, 4) float64, voxel -> RAS+ world; a 2D image carries its pixel spacing in rows and columns 0 and 1."""
    unit: Literal["mm", "px"] = "px"
    modality: str = "OT"
    """DICOM modality code: CT, MR, DX, US, ...; OT (other) where the file does not say."""
    subject_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Site, sex, age band, scanner: for slicing results only, never written to a bundle."""
    warnings: tuple[str, ...] = ()

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.image.ndim - 1

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel edge lengths along each array axis, in `unit`."""
        edges = np.linalg.norm(self.affine[:3, : self.spatial_dims], axis=0)
        return tuple(float(edge) for edge in edges)

    @property
    def voxel_size(self) -> float:
        """Volume of a voxel, or area of a pixel, in `unit`; that of a sheared one is less than its edges' product."""
        d = self.spatial_dims
        return abs(float(np.linalg.det(self.affine[:d, :d])))


@dataclass(frozen=True, slots=True)
class Box:
    """An object in an image: its class, and its box from face to face (index i covers [i - 1/2, i + 1/2])."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    target: int
    """Index into Dataset.classes."""
    ignore: bool = False
    """Neither an object nor background: 'difficult' in VOC, 'iscrowd' in COCO."""


@dataclass(frozen=True, slots=True)
class CaseRef:
    """What a dataset knows of a case before its pixels are read."""

    case_id: str
    source: Path | ArrayRef | SeriesRef
    target: tuple[int, ...] = ()
    """Indices into Dataset.classes: one for exclusive classes, any number for multi-label."""
    subject_id: str = ""
    """Empty where the dataset does not say: then every case counts as a subject of its own."""
    split: Split | None = None
    """The split that the dataset prescribes, if it does."""
    weight: float = 1.0
    label_map: Path | None = None
    """A segmentation of the image, where the dataset has one: a file, DICOM SEG or RTSTRUCT too."""
    numbers: tuple[float, ...] = ()
    """What is to be measured, in the order of Dataset.quantities."""
    boxes: tuple[Box, ...] = ()
    """Objects in the image, where the dataset has them."""

    @property
    def subject(self) -> str:
        """The unit that must not be torn apart by a split."""
        return self.subject_id or self.case_id


@dataclass(frozen=True, slots=True)
class Dataset:
    """References to the cases of one dataset, in a fixed order."""

    refs: tuple[CaseRef, ...]
    classes: tuple[str, ...]
    multilabel: bool = False
    notes: tuple[str, ...] = ()
    """What a person should know of how the layout was read, one line each."""
    label_values: tuple[int, ...] = ()
    """What a label map holds for each class, in their order; empty: 0, 1, ..."""
    ignored_value: int | None = None
    """What a label map holds where nobody labelled, if it may."""
    quantities: tuple[str, ...] = ()
    """Names of the numbers that the cases carry, for a regression."""

    @property
    def legal_values(self) -> tuple[int, ...]:
        """What a label map may hold; empty where no classes are named: then anything."""
        named = self.label_values or tuple(range(len(self.classes)))
        return named if self.ignored_value is None else (*named, self.ignored_value)


@dataclass(frozen=True, slots=True)
class NetworkIO:
    """What a network takes and gives."""

    in_channels: int
    size: tuple[int, ...]
    """Shape of the grid or window (*S); its length is the number of spatial axes."""
    outputs: int
    """Length of the output vector, of the case or of each voxel."""
    dense: bool = False
    """Whether the network answers per voxel, (B, K, *S), or per case, (B, K)."""

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.size)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a network is stepped with."""

    image: torch.Tensor
    """(B, C, *S) float."""
    target: torch.Tensor
    """(B, K) float: one-hot, multi-hot, a mixture of such rows, or numbers; of a dense task (B, 1, *S) uint8, the
    index of each voxel's class, IGNORED where nobody labelled."""
    weight: torch.Tensor
    """(B,) float, the weight of each case in the loss."""
    index: torch.Tensor
    """(B,) int64, the row of each case in the store, plus N for each time it was drawn before in the epoch.

    Names a case's random augmentation; stays on the CPU."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; pinned memory is copied without waiting."""
        return Batch(
            self.image.to(device, non_blocking=True),
            self.target.to(device, non_blocking=True),
            self.weight.to(device, non_blocking=True),
            self.index,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a task says of one case."""

    case_id: str
    classes: tuple[str, ...]
    scores: Array
    """(K,) probabilities in the order of `classes`, calibrated where the bundle says how; of a regression the numbers
    themselves; empty for a segmentation."""
    labels: tuple[str, ...]
    """The classes that the decision rule picks: one for exclusive classes, any number for multi-label; the
    structures that were found for a segmentation."""
    warnings: tuple[str, ...] = ()
    mask: Array | None = None
    """(*S) unsigned, the index of each voxel's class, or of overlapping regions (R, *S) bool; on the patient's grid."""
    probabilities: Array | None = None
    """(K, *S) float32 on the patient's grid, where they were asked for."""
    volumes: Mapping[str, float] = field(default_factory=dict)
    """Structure -> mL (mm2 in 2D, voxels where the image has no unit)."""
    conformal_set: tuple[str, ...] | None = None
    """The classes that cannot be ruled out at the bundle's level."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Regression: name -> (low, high) at the bundle's level."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Measures of the image itself, see imaging/quality.py."""
    uncalibrated: Array | None = None
    """(K,) the network's own probabilities, where `scores` are calibrated ones."""
