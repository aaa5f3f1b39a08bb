"""MedMNIST archives (Yang 2023, 10.1038/s41597-022-01721-8): one .npz with the official splits, 2D or 3D."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.lib import format as npy

from medray.datasets.files import require_file, some
from medray.datasets.subjects import subject_notes
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import ArrayRef, CaseRef, Dataset, InputError, Split

EXPECTS = "a MedMNIST .npz with train_images, train_labels, val_images, val_labels, test_images, test_labels"
MAX_LABELS = 1000
"""Columns of a label array; more means that it is no label array."""


class Config(DatasetSection):
    """Where the archive is."""

    name: Literal["medmnist"] = "medmnist"
    path: AbsolutePath
    classes: tuple[str, ...] | None = None
    """Names in the order of the labels; by default '0', '1', ..."""


def scan(cfg: Config) -> Dataset:
    """References to the rows of the image arrays, in the order train, val, test; only labels are read.

    Raises:
        ConfigError: no file.
        InputError: `broken_archive`, `missing_members`, `wrong_labels`, `wrong_target`.
    """
    path = require_file(cfg.path, EXPECTS)
    try:
        with zipfile.ZipFile(path) as archive:
            labels = dict(_labels(archive))
            unknown = sorted(set(_members(archive)) - {f"{s}_{kind}" for s in labels for kind in ("images", "labels")})
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise InputError("broken_archive", f"{path.name} is no readable .npz: {error}", "download it again") from None
    width = {array.shape[1] for array in labels.values()}
    if len(width) > 1:
        raise InputError("wrong_labels", f"label arrays of {sorted(width)} columns in one archive", EXPECTS)
    multilabel = width != {1}
    refs = tuple(
        CaseRef(f"{path.stem}/{split}/{row:06d}", ArrayRef(path, f"{split}_images", row), target, split=split)
        for split, array in labels.items()
        for row, target in enumerate(_targets(array, multilabel))
    )
    found = width.pop() if multilabel else 1 + max((ref.target[0] for ref in refs), default=-1)
    classes = cfg.classes or tuple(map(str, range(found)))
    if len(classes) < found:
        detail = f"the labels need {found} classes, dataset.classes has {len(classes)}"
        raise InputError("wrong_target", detail, "name all classes")
    notes = (f"other arrays in the archive are not used: {some(unknown)}",) if unknown else ()
    return Dataset(refs, classes, multilabel, notes + subject_notes(refs, "the archive does not say"))


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Names of the arrays."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _labels(archive: zipfile.ZipFile) -> Iterator[tuple[Split, np.ndarray]]:
    """(split, labels (N, L)) of each split in the archive."""
    members = _members(archive)
    splits: list[Split] = [s for s in get_args(Split) if f"{s}_images" in members or f"{s}_labels" in members]
    wanted = [f"{split}_{kind}" for split in splits or ("train",) for kind in ("images", "labels")]
    absent = [name for name in wanted if name not in members]
    if absent:
        detail = f"the archive has no {some(absent)}; it has {some(members, 10) or 'no arrays'}"
        raise InputError("missing_members", detail, f"expected {EXPECTS}")
    for split in splits:
        images, _ = _header(archive, f"{split}_images")
        shape, dtype = _header(archive, f"{split}_labels")
        shape = shape if len(shape) > 1 else (*shape, 1)
        # Refused by the header: a label array that lies about its size is never read.
        if (
            len(shape) != 2
            or not images
            or shape[0] != images[0]
            or not 1 <= shape[1] <= MAX_LABELS
            or dtype.kind not in "iub"
        ):
            detail = f"{split}_labels is {dtype} {shape} for {split}_images {images}"
            raise InputError("wrong_labels", detail, "labels are integers (N, 1), or 0 and 1 in (N, L)")
        with archive.open(f"{split}_labels.npy") as file:
            try:
                yield split, npy.read_array(file, allow_pickle=False).reshape(shape).astype(np.int64)
            except ValueError as error:
                detail = f"{split}_labels cannot be read: {error}"
                raise InputError("broken_archive", detail, "download it again") from None


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without its data."""
    with archive.open(f"{member}.npy") as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise InputError("broken_archive", f"{member} has no valid header: {error}", "download it again") from None
    return shape, dtype


def _targets(labels: np.ndarray, multilabel: bool) -> Iterator[tuple[int, ...]]:
    """The classes of each row."""
    if labels.size and (labels.min() < 0 or (multilabel and labels.max() > 1)):
        allowed = "0 or 1" if multilabel else "0 or more"
        raise InputError("wrong_labels", f"labels run from {labels.min()} to {labels.max()}", f"they must be {allowed}")
    if multilabel:
        return (tuple(int(column) for column in np.flatnonzero(row)) for row in labels)
    return ((int(label),) for label in labels[:, 0])
