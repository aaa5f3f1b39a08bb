"""BIDS (Gorgolewski 2016, 10.1038/sdata.2016.44): sub-*/[ses-*/]anat images, labels in participants.tsv or derivatives.

Format: bids-specification.readthedocs.io.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from medray.datasets.files import list_folder, require_file, require_folder, some, stem
from medray.datasets.tables import LABEL_ALIASES, TARGET_ALIASES, TargetSection, find_columns, read_table, read_targets
from medray.sections.base import AbsolutePath
from medray.types import CaseRef, Dataset, InputError

EXPECTS = "a folder with sub-*/[ses-*/]anat/*_T1w.nii.gz, and participants.tsv with a label for each participant"
NOT_AVAILABLE = "n/a"
SUBJECT_ALIASES = ("participant_id",)
ALIASES = {
    "participant": SUBJECT_ALIASES,
    **TARGET_ALIASES,
    "label": (*LABEL_ALIASES, "group", "diagnosis", "dx"),
}


class Config(TargetSection):
    """Which images of a BIDS folder are cases, and where their labels are."""

    name: Literal["bids"] = "bids"
    path: AbsolutePath
    suffix: str = "T1w"
    """What the images' names end in: T1w, T2w, FLAIR, ...; with entities before it, as in acq-highres_T1w, too."""
    participant_column: str | None = None
    """By default participant_id."""
    label_column: str | None = None
    """Of participants.tsv; by default label, labels, class, target, group, diagnosis or dx."""
    masks: str | None = None
    """Name of the folder in derivatives/ that has a label map per image: then these are the labels."""
    mask_suffix: str = "dseg"
    """What the label maps' names end in, with entities before it if one image has several: desc-lesion_mask."""

    @model_validator(mode="after")
    def _named(self) -> Config:
        if self.masks is not None and not self.classes:
            raise ValueError("with masks, classes must name their values in order, as in [background, lesion]")
        return self


def scan(cfg: Config) -> Dataset:
    """References to the images of each participant, whose id is the subject.

    Participants whose label is n/a, or who have no such image, are left out and counted in a note.

    Raises:
        ConfigError: no such folder, table or column.
        InputError: `missing_label`, `missing_partner`, `ambiguous_label`, `duplicate_subject`, and those of tables.
    """
    root = require_folder(cfg.path, EXPECTS)
    images = _images(root, f"_{cfg.suffix}")
    if cfg.masks is not None:
        return _with_masks(cfg, root, images)
    table = read_table(require_file(root / "participants.tsv", EXPECTS))
    columns = find_columns(cfg, table, ALIASES, ("participant", "label"))
    subjects = table.column(columns["participant"]) or []
    _check_listed(images, subjects)
    labels = table.column(columns["label"]) or []
    known = [row for row, label in enumerate(labels) if label.lower() != NOT_AVAILABLE]
    used = [row for row in known if images.get(subjects[row])]
    told = read_targets(cfg, table.keep(used), columns)
    refs = [
        CaseRef(case_id, file, told.targets[position], subjects[row], told.splits[position], told.weights[position])
        for position, row in enumerate(used)
        for case_id, file in images[subjects[row]].items()
    ]
    notes = list(told.notes)
    if len(known) < len(labels):
        notes.append(f"left out {len(labels) - len(known)} participants whose label is {NOT_AVAILABLE}")
    if len(used) < len(known):
        without = some([subjects[row] for row in known if not images.get(subjects[row])])
        notes.append(f"left out {len(known) - len(used)} participants without an image *_{cfg.suffix}: {without}")
    return Dataset(tuple(refs), told.classes, told.multilabel, tuple(notes))


def _check_listed(images: Mapping[str, Mapping[str, Path]], subjects: Sequence[str]) -> None:
    """Raise where a participant is twice in the table, or has an image and is not in it."""
    twice = [subject for subject, count in Counter(subjects).items() if count > 1]
    if twice:
        detail = f"{len(twice)} participants are in participants.tsv more than once"
        raise InputError("duplicate_subject", detail, "one row each")
    unlisted = [subject for subject, files in images.items() if files and subject not in subjects]
    if unlisted:
        detail = f"{len(unlisted)} participants with images are not in participants.tsv: {some(unlisted)}"
        raise InputError("missing_label", detail, "add rows (label n/a to leave them out), or use masks")


def _images(root: Path, ending: str) -> dict[str, dict[str, Path]]:
    """Subject -> case -> the NIfTI file in anat whose name ends so, in order; a case is the path without ending."""
    return {
        subject: {
            f"{place}/{stem(name)}": root / place / name
            for place in _anat_folders(root, subject)
            for name in list_folder(root / place, Counter())[1]
            if stem(name).endswith(ending) and name.lower().endswith((".nii", ".nii.gz"))
        }
        for subject in list_folder(root, Counter())[0]
        if subject.startswith("sub-")
    }


def _anat_folders(root: Path, subject: str) -> list[str]:
    """The anat folders of a subject, relative to the root."""
    inner = list_folder(root / subject, Counter())[0]
    places = [subject, *(f"{subject}/{name}" for name in inner if name.startswith("ses-"))]
    return [f"{place}/anat" for place in places if (root / place / "anat").is_dir()]


def _with_masks(cfg: Config, root: Path, images: Mapping[str, Mapping[str, Path]]) -> Dataset:
    """References with the label maps of a derivative."""
    place = require_folder(root / "derivatives" / str(cfg.masks), "a folder in derivatives/ with sub-*/[ses-*/]anat")
    masks = _images(place, f"_{cfg.mask_suffix}")
    refs, lone = [], []
    for subject, files in images.items():
        for case_id, file in files.items():
            fitting = [mask for mask in masks.get(subject, {}).values() if _belongs(mask, file)]
            if len(fitting) > 1:
                names = some([mask.name for mask in fitting])
                raise InputError(
                    "ambiguous_label", f"'{case_id}' has several label maps: {names}", "dataset.mask_suffix"
                )
            if fitting:
                refs.append(CaseRef(case_id, file, (), subject, label_map=fitting[0]))
            else:
                lone.append(case_id)
    shared = [mask for mask, count in Counter(ref.label_map for ref in refs).items() if count > 1 and mask]
    if shared:
        detail = f"{len(shared)} label maps fit several images: {some([mask.name for mask in shared])}"
        raise InputError("ambiguous_label", detail, "name them with every entity (run-, acq-, ...) of their image")
    if lone:
        detail = f"{len(lone)} images have no label map *_{cfg.mask_suffix} in derivatives/{cfg.masks}: {some(lone)}"
        raise InputError("missing_partner", detail, "add them, or take the images away")
    return Dataset(tuple(refs), cfg.classes or ())


def _belongs(mask: Path, image: Path) -> bool:
    """Whether a label map's name has every entity (sub-, ses-, acq-, run-, ...) that its image's name has."""
    entities = set(re.findall(r"[a-z]+-[A-Za-z0-9+]+", stem(image.name)))
    return entities <= set(re.findall(r"[a-z]+-[A-Za-z0-9+]+", stem(mask.name)))
