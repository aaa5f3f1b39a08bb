"""nnU-Net's raw layout, version 2 (Isensee 2021, 10.1038/s41592-020-01008-z): nnUNet_raw/DatasetXXX_Name.

Format: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medray.config import nearest
from medray.datasets.files import ignored_notes, is_image, list_folder, pair, read_json, require_file, some
from medray.datasets.subjects import SubjectPattern, subject_notes, with_subjects
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import CaseRef, Dataset, InputError, Split

EXPECTS = "a folder with dataset.json (channel_names, labels, numTraining, file_ending), imagesTr/ and labelsTr/"
IGNORE = "ignore"


class Config(DatasetSection):
    """Where dataset.json is."""

    name: Literal["nnunet"] = "nnunet"
    path: AbsolutePath
    """nnUNet_raw/DatasetXXX_Name."""
    channel: str | None = None
    """The one channel to use, by its name or number, where cases have several files."""
    subject_pattern: SubjectPattern = None


def scan(cfg: Config) -> Dataset:
    """References to imagesTr/CASE_0000.ext with labelsTr/CASE.ext, and those of imagesTs that have a labelsTs: test.

    Raises:
        ConfigError: no dataset.json.
        InputError: `broken_json`, `multi_channel`, `region_labels`, `missing_partner`, `missing_channel`,
            `unsupported_type`, `case_count`, `subject_pattern`.
    """
    tree = _load(require_file(cfg.path / "dataset.json", EXPECTS))
    names, notes = _label_names(tree["labels"])
    channel = _channel(cfg.channel, tree["channel_names"])
    ignored: Counter[str] = Counter()
    ending = tree["file_ending"]
    train = _cases(cfg.path, "Tr", ending, channel, ignored)
    if len(train) != tree["numTraining"]:
        detail = f"imagesTr has {len(train)} cases, numTraining in dataset.json is {tree['numTraining']}"
        raise InputError("case_count", detail, "complete the folder or correct dataset.json")
    test: list[tuple[str, Path, Path]] = []
    if (cfg.path / "labelsTs").is_dir():
        test = _cases(cfg.path, "Ts", ending, channel, ignored)
    elif (cfg.path / "imagesTs").is_dir():
        unlabelled = len(list_folder(cfg.path / "imagesTs", Counter())[1])
        notes += (f"left out {unlabelled} files of imagesTs: there is no labelsTs",)
    splits: tuple[Split | None, Split] = ("train" if test else None, "test")
    refs = [
        CaseRef(name, image, (), "", split, 1.0, mask)
        for split, cases in zip(splits, (train, test), strict=True)
        for name, image, mask in cases
    ]
    refs = with_subjects(refs, cfg.subject_pattern)
    notes += ignored_notes(ignored) + subject_notes(refs, "dataset.subject_pattern")
    ignored_value = len(names) if IGNORE in tree["labels"] else None
    return Dataset(tuple(refs), names, ignored_value=ignored_value, notes=notes)


def _load(file: Path) -> dict[str, Any]:
    """The JSON tree, whose four keys have the right types."""
    tree = read_json(file, EXPECTS)
    wanted = {"channel_names": dict, "labels": dict, "numTraining": int, "file_ending": str}
    wrong = [key for key, kind in wanted.items() if not isinstance(tree.get(key), kind)]
    if wrong:
        detail = f"{file.name} has no valid {some(wrong, 4)}; it has {some(list(tree), 10)}"
        old = "this is nnU-Net's version 1: convert it with nnUNetv2_convert_old_nnUNet_dataset"
        raise InputError("broken_json", detail, old if "training" in tree and "modality" in tree else EXPECTS)
    if "dataset" in tree:
        detail = "dataset.json lists its files under 'dataset'"
        raise InputError("unsupported_type", detail, "copy or link them into imagesTr and labelsTr")
    if not is_image(f"case{tree['file_ending']}"):
        detail = f"file_ending {tree['file_ending']!r} is of no type that medray reads"
        raise InputError("unsupported_type", detail, "convert to .nii.gz, .nrrd or .png")
    return tree


def _label_names(labels: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in the order of the label values 0, 1, ..., and a note on the label to ignore."""
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    if regions:
        detail = f"{len(regions)} of {len(labels)} labels are regions that overlap: {some(regions)}"
        raise InputError("region_labels", detail, "name each value of the label maps once: {'oedema': 1, 'core': 2}")
    values = {name: str(value) for name, value in labels.items()}
    names = tuple(sorted(values, key=lambda name: int(values[name]) if values[name].isdecimal() else -1))
    if [values[name] for name in names] != [str(value) for value in range(len(names))] or len(names) < 2:
        detail = f"'labels' has the values {some(list(values.values()), 10)}"
        raise InputError("broken_json", detail, "name the values 0 (background), 1, 2, ... without a gap")
    if IGNORE not in names:
        return names, ()
    if names[-1] != IGNORE:
        raise InputError("broken_json", f"'ignore' has the value {values[IGNORE]}", "it must have the highest")
    return names[:-1], (f"label value {values[IGNORE]} ('ignore') marks voxels that nobody labelled",)


def _channel(wanted: str | None, names: Mapping[str, Any]) -> int | None:
    """The number of the channel that the settings name."""
    if wanted is None:
        return None
    known = {str(number): int(number) for number in names if str(number).isdecimal()}
    known |= {str(name): int(number) for number, name in names.items() if str(number).isdecimal()}
    if wanted not in known:
        raise InputError("missing_channel", f"there is no channel '{wanted}'{nearest(wanted, known)}", f"{dict(names)}")
    return known[wanted]


def _cases(
    root: Path, part: str, ending: str, channel: int | None, ignored: Counter[str]
) -> list[tuple[str, Path, Path]]:
    """(case, image, label map) of imagesTr or imagesTs."""
    found: dict[str, dict[int, Path]] = {}
    folder = root / f"images{part}"
    for file in list_folder(folder, ignored)[1]:
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", file)
        if match is None:
            ignored[f"not named CASE_0000{ending}"] += 1
        else:
            found.setdefault(match[1], {})[int(match[2])] = folder / file
    several = [name for name, files in found.items() if len(files) > 1]
    if several and channel is None:
        detail = f"{len(several)} of {len(found)} cases have several files, one per channel: {some(several)}"
        hint = "one channel is read: name it with dataset.channel, or merge them into one file per case"
        raise InputError("multi_channel", detail, hint)
    number = channel or 0
    lacking = [name for name, files in found.items() if number not in files]
    if lacking:
        detail = f"{len(lacking)} of {len(found)} cases have no file _{number:04d}{ending}: {some(lacking)}"
        raise InputError("missing_channel", detail, "add the files")
    masks = root / f"labels{part}"
    images = {name: files[number] for name, files in found.items()}
    names = [file for file in list_folder(masks, ignored)[1] if file.endswith(ending)]
    return pair(images, {file.removesuffix(ending): masks / file for file in names})
