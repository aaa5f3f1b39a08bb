"""Images and masks in two folders, paired by name: images/a.jpg with masks/a.png."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt

from medray.config import ConfigError
from medray.datasets.files import (
    MASK_FOLDERS,
    SPLIT_NAMES,
    ignored_notes,
    list_folder,
    pair,
    require_folder,
    some,
    split_folders,
    stem,
    walk,
)
from medray.datasets.subjects import SubjectPattern, subject_notes, with_subjects
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import CaseRef, Dataset, InputError

EXPECTS = "a folder with images/ and masks/ (or labels/, annotations/), or train/, val/ and test/ each with both"
MASK_SUFFIXES = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt", "-mask", "-seg", "-label")
DEFAULT_VALUES = {"background": 0, "foreground": 255}


def _distinct(values: dict[str, int]) -> dict[str, int]:
    if len(values) < 2 or len(set(values.values())) < len(values):
        raise ValueError("needs two or more names with different values")
    return values


class Config(DatasetSection):
    """Where images and masks are, and what the masks hold."""

    name: Literal["pairs"] = "pairs"
    path: AbsolutePath
    images: str = "images"
    """Name of the folder of images."""
    masks: str | None = None
    """Name of the folder of masks; by default the one there of masks, mask, labels, annotations, segmentations."""
    mask_suffix: str | None = None
    """What a mask's name has more than its image's: '_mask' in a_mask.png; by default the usual one that all have."""
    values: Annotated[dict[str, NonNegativeInt], AfterValidator(_distinct)] = DEFAULT_VALUES
    """Class -> its value in the masks, in the order of the classes; by default masks hold exactly 0 and 255."""
    subject_pattern: SubjectPattern = None


def scan(cfg: Config) -> Dataset:
    """References to images, each with its mask as label map.

    Raises:
        ConfigError: no such folders.
        InputError: `missing_partner`, `duplicate_case`, `mixed_layout`, `subject_pattern`, `unreadable_folder`.
    """
    root = require_folder(cfg.path, EXPECTS)
    ignored: Counter[str] = Counter()
    folders = list_folder(root, Counter())[0]
    above = [name for name in folders if name.lower() in SPLIT_NAMES]
    refs = []
    seen: dict[str, None] = {}
    for split, folder in split_folders(above if cfg.images not in folders else []):
        place = root / folder
        images = _named(require_folder(place / cfg.images, EXPECTS), ignored)
        masks = _named(_mask_folder(cfg, place), ignored)
        masks, note = _without_suffix(images, masks, cfg.mask_suffix)
        seen |= dict.fromkeys(note)
        prefix = f"{folder}/" if folder else ""
        refs += [CaseRef(prefix + name, image, (), "", split, 1.0, mask) for name, image, mask in pair(images, masks)]
    refs = with_subjects(refs, cfg.subject_pattern)
    meant = ", ".join(f"{value} is {name}" for name, value in cfg.values.items())
    found = (*seen, f"in the masks {meant} (dataset.values)", *ignored_notes(ignored))
    notes = found + subject_notes(refs, "dataset.subject_pattern")
    return Dataset(tuple(refs), tuple(cfg.values), label_values=tuple(cfg.values.values()), notes=notes)


def _mask_folder(cfg: Config, place: Path) -> Path:
    """The folder of the masks."""
    if cfg.masks is not None:
        return require_folder(place / cfg.masks, EXPECTS)
    there = [name for name in MASK_FOLDERS if (place / name).is_dir()]
    if len(there) != 1:
        what = f"{some(there)} could each hold the masks" if there else f"no {', '.join(MASK_FOLDERS)}"
        raise ConfigError([f"dataset.masks: {what} in '{place}'; name the folder"])
    return place / there[0]


def _named(folder: Path, ignored: Counter[str]) -> dict[str, Path]:
    """Path without ending, relative to the folder -> file."""
    names = list(walk(folder, ignored))
    found = {stem(name): folder / name for name in names}
    if len(found) < len(names):
        twice = [name for name, count in Counter(map(stem, names)).items() if count > 1]
        detail = f"{len(twice)} names in {folder.name}/ have two endings: {some(twice)}"
        raise InputError("duplicate_case", detail, "keep one of each")
    return found


def _without_suffix(
    images: dict[str, Path], masks: dict[str, Path], suffix: str | None
) -> tuple[dict[str, Path], list[str]]:
    """The masks under their images' names, and a note where a suffix was found."""
    note = []
    if suffix is None:
        common = [end for end in MASK_SUFFIXES if masks and all(name.endswith(end) for name in masks)]
        suffix = common[0] if common and not masks.keys() & images.keys() else ""
        note = [f"the masks' names end in '{suffix}' (dataset.mask_suffix)"] if suffix else []
    lacking = [name for name in masks if not name.endswith(suffix)]
    if lacking:
        detail = f"{len(lacking)} masks do not end in '{suffix}': {some(lacking, 10)}"
        raise InputError("missing_partner", detail, "correct dataset.mask_suffix")
    return {name.removesuffix(suffix): file for name, file in masks.items()}, note
