"""The sign by which each layout is known: names of folders and files, keys of a JSON, the first bytes of a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray.datasets.dicom_labels import KEYS
from medray.datasets.files import IMAGE_SUFFIXES, MASK_FOLDERS, SPLIT_NAMES, some
from medray.datasets.seen import FIRST_FILES, Seen, has_columns, has_keys, is_dicom
from medray.datasets.tables import IMAGE_ALIASES

TABLES = (".csv", ".tsv")
COCO_KEYS = ("images", "annotations", "categories")
CLASS_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".dcm")
TAKEN = frozenset(
    {"images", *MASK_FOLDERS, "imagestr", "imagests", "labelstr", "labelsts", "jpegimages", "imagesets", "derivatives"}
)
"""Names of folders that other layouts have, in lower case: no classes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A layout that fits, what was seen of it, and its settings."""

    layout: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _lone_table(seen: Seen) -> Path | None:
    """The one table in a folder."""
    tables = [name for name in seen.files if name.lower().endswith(TABLES)]
    return seen.path / tables[0] if len(tables) == 1 else None


def _medmnist(seen: Seen) -> Found | None:
    if seen.is_file and seen.path.suffix.lower() == ".npz":
        return Found("medmnist", "a file ending in .npz", {"path": seen.path})
    archives = [name for name in seen.files if name.lower().endswith(".npz")]
    if len(archives) == 1:
        return Found("medmnist", f"the one .npz here is {archives[0]}", {"path": seen.path / archives[0]})
    return None


def _nnunet(seen: Seen) -> Found | None:
    if "dataset.json" not in seen.files or "imagesTr" not in seen.folders:
        return None
    keys = has_keys(seen.path / "dataset.json", ("channel_names", "file_ending"))
    first = [match[0] for name in seen.names_in(seen.path / "imagesTr")[1] if (match := re.search(r"_0000\..+$", name))]
    if not keys and not first:
        return None
    said = "dataset.json names channel_names" if keys else "dataset.json names no channel_names, but"
    count = f"imagesTr has {len(first)} files ending in {first[0]}" if first else "there is imagesTr"
    return Found("nnunet", f"nnU-Net raw: {said}{', ' if keys else ' '}{count}", {"path": seen.path})


def _decathlon(seen: Seen) -> Found | None:
    file = seen.path if seen.is_file else seen.path / "dataset.json"
    named = seen.path.suffix.lower() == ".json" if seen.is_file else "dataset.json" in seen.files
    if not named or _nnunet(seen) or not has_keys(file, ("training",)):
        return None
    return Found("decathlon", f"{file.name} lists 'training'", {"path": seen.path})


def _bids(seen: Seen) -> Found | None:
    subjects = [name for name in seen.folders if name.startswith("sub-")]
    marks = [name for name in ("participants.tsv", "dataset_description.json") if name in seen.files]
    if not subjects or not marks:
        return None
    return Found("bids", f"{len(subjects)} folders sub-* beside {' and '.join(marks)}", {"path": seen.path})


def _voc(seen: Seen) -> Found | None:
    if {"Annotations", "JPEGImages"} <= set(seen.folders):
        return Found("voc", "there are Annotations/ and JPEGImages/", {"path": seen.path})
    return None


def _coco(seen: Seen) -> Found | None:
    if seen.is_file:
        files = [seen.path] if seen.path.suffix.lower() == ".json" else []
    else:
        inner = [name for name in seen.folders if name.lower() in ("annotations", *SPLIT_NAMES)]
        places = [(seen.path, seen.files), *((seen.path / name, seen.names_in(seen.path / name)[1]) for name in inner)]
        files = [place / name for place, names in places for name in names if name.lower().endswith(".json")]
    fitting = [file for file in files[:FIRST_FILES] if has_keys(file, COCO_KEYS)]
    if not fitting:
        return None
    why = f"{some([file.name for file in fitting])} with {', '.join(COCO_KEYS)}"
    return Found("coco", why, {"path": seen.path})


def _table(seen: Seen) -> Found | None:
    if seen.is_file:
        fits = seen.path.suffix.lower() in TABLES
        return Found("table", f"a file ending in {seen.path.suffix}", {"path": seen.path}) if fits else None
    table = _lone_table(seen)
    if table is None or "participants.tsv" in seen.files or not has_columns(table, IMAGE_ALIASES):
        return None
    return Found("table", f"the one table here, {table.name}, has a column of image files", {"path": table})


def _pairs(seen: Seen) -> Found | None:
    splits = [name for name in seen.folders if name.lower() in SPLIT_NAMES]
    place = seen.path if "images" in seen.folders or not splits else seen.path / splits[0]
    folders = seen.folders if place == seen.path else tuple(seen.names_in(place)[0])
    masks = [name for name in MASK_FOLDERS if name in folders and seen.first_image(place / name)]
    if "images" not in folders or not masks:
        return None
    where = "" if place == seen.path else f"{place.name}/"
    return Found("pairs", f"there are {where}images/ and {where}{masks[0]}/ with images in both", {"path": seen.path})


def _folder(seen: Seen) -> Found | None:
    splits = [name for name in seen.folders if name.lower() in SPLIT_NAMES]
    if splits and len(splits) < len(seen.folders):
        return None
    inner = [seen.path / name for name in splits] or [seen.path]
    classes = [place / name for place in inner for name in seen.names_in(place)[0]] if not seen.is_file else []
    if len({place.name for place in classes}) < 2:
        return None
    if any(place.name.lower() in TAKEN or place.name.startswith("sub-") for place in classes):
        return None
    # Folders of .dcm are far more often series than classes.
    if not all(seen.first_image(place).lower().endswith(CLASS_SUFFIXES) for place in classes):
        return None
    names = some(sorted({place.name for place in classes}))
    above = f" in each of {', '.join(splits)}" if splits else ""
    return Found("folder", f"every folder{above} holds images: {names}", {"path": seen.path})


def _dicom(seen: Seen) -> Found | None:
    if seen.is_file:
        return None
    first = seen.first_files(seen.path)
    count = sum(map(is_dicom, first))
    if count == 0 or count < len(first) / 2:
        return None
    table = _lone_table(seen)
    keyed = table is not None and any(has_columns(table, names) for names in KEYS.values())
    settings = {"path": seen.path, "labels": table} if keyed else {"path": seen.path}
    labels = f"; labels in {table.name}" if table and keyed else ""
    return Found("dicom", f"{count} of the first {len(first)} files are DICOM{labels}", settings)


SIGNS: tuple[Callable[[Seen], Found | None], ...] = (
    _medmnist,
    _nnunet,
    _decathlon,
    _bids,
    _voc,
    _coco,
    _table,
    _pairs,
    _folder,
    _dicom,
)
"""One for each layout of files that people have."""
