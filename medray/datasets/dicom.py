"""A tree of DICOM series, at any depth and under any names; labels in a table, or as SEG and RTSTRUCT beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt

from medray.datasets.dicom_labels import LabelTable, open_labels
from medray.datasets.files import HIDDEN, require_folder, walk
from medray.datasets.subjects import subject_notes
from medray.datasets.tables import TargetSection, read_targets
from medray.sections.base import AbsolutePath, Count, Section
from medray.types import CaseRef, Dataset, InputError, SeriesRef

if TYPE_CHECKING:
    from medray.imaging.dicom.series import SeriesInfo

EXPECTS = "a folder with DICOM files at any depth"


def _expression(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


class SeriesSection(Section):
    """Which series of the tree are cases."""

    modality: str | None = None
    """Modality (0008,0060): CT, MR, DX, ...; by default all that hold images."""
    description: Annotated[str | None, AfterValidator(_expression)] = None
    """Regular expression that is found in the series description (0008,103E), capitals or not."""
    min_slices: Count = 1
    """Fewest files per volume (a multi-frame file counts as one): leaves out localizers."""
    one_per: Literal["study", "patient", "none"] | None = None
    """Where more than one series may not be left; by default each row of the table of labels has at most one."""


class Config(TargetSection):
    """Where the tree is, which series count, and where their labels are."""

    name: Literal["dicom"] = "dicom"
    path: AbsolutePath
    series: SeriesSection = SeriesSection()
    time: NonNegativeInt | Literal["all"] | None = None
    """Of series with several volumes: the one to use, from 0, or each as a case; by default they are refused."""
    label_maps: Literal["SEG", "RTSTRUCT"] | None = None
    """Which label maps count, where series have both."""
    labels: AbsolutePath | None = None
    """A CSV file: a row for each series, study, folder (relative to path) or patient."""
    series_column: str | None = None
    """By default series, series_uid, series_instance_uid or SeriesInstanceUID; it counts before the other three."""
    study_column: str | None = None
    """By default study, study_uid, study_instance_uid or StudyInstanceUID."""
    folder_column: str | None = None
    """By default folder, path or directory."""
    patient_column: str | None = None
    """By default patient, patient_id, PatientID, subject or subject_id."""


def scan(cfg: Config) -> Dataset:
    """References to series; a case is called by its SeriesInstanceUID, the subject is its PatientID.

    A SEG or RTSTRUCT that refers to a series is its label map. With neither label maps nor a table of labels all
    series are cases without a target.

    Raises:
        ConfigError: no folder, no table or no column in it.
        InputError: `ambiguous_series`, `ambiguous_label`, `missing_series`, `no_cases`, and
            those of tables.
    """
    # Imported where needed: who lists a folder of PNG does not pay for pydicom.
    from medray.imaging.dicom.series import find

    root = require_folder(cfg.path, EXPECTS)
    ignored: Counter[str] = Counter()
    files = [root / name for name in walk(root, ignored, lambda _: True)]
    found = find(files)
    labels = open_labels(cfg, cfg.labels) if cfg.labels else None
    images = [info for info in found if info.is_image]
    row_of = labels.rows_of(images, root) if labels else {}
    maps = {} if labels else _label_maps(cfg, found, {info.uid for info in images})
    kept, left = _choose(cfg, images, row_of if labels else maps or None)
    named = [info for info in found if info.uid]
    nameless = [file for info in found if not info.uid for file in info.files]
    if labels:
        left["label maps, since the table of labels counts"] = sum(info.is_label_map for info in named)
    left["series without images"] = sum(not info.is_image and not info.is_label_map for info in named)
    loose = [] if labels or maps else nameless
    if not kept and not loose:
        raise InputError("no_cases", f"no series is left: {_count(left) or 'there is none'}", "see dataset.series")
    _check_kept(kept, maps)
    _check_one_per(cfg.series.one_per, kept, row_of)
    dataset = _dataset(cfg, kept, labels, row_of, maps)
    # Cases of their own, which the reader will refuse: so they are listed, and too many stop a training.
    refs = (*dataset.refs, *(CaseRef(f"unreadable/{path.relative_to(root)}", SeriesRef((path,))) for path in loose))
    left["files whose header cannot be read"] = len(nameless) - len(loose)
    notes: tuple[str, ...] = (f"left out: {_count(left)}",) if left.total() else ()
    foreign = len(files) - sum(len(info.files) for info in found) + ignored[HIDDEN]
    notes += (f"ignored {foreign} files that are no DICOM",) if foreign else ()
    several = sum(info.times > 1 for info in kept)
    if several and cfg.time is None:
        notes += (f"{several} series hold several volumes and will be refused (time_series): set dataset.time",)
    return replace(dataset, refs=refs, notes=dataset.notes + notes)


def _dataset(
    cfg: Config,
    kept: Sequence[SeriesInfo],
    labels: LabelTable | None,
    row_of: Mapping[str, int],
    maps: Mapping[str, Sequence[Path]],
) -> Dataset:
    """The references to the chosen series."""
    used = sorted({row_of[info.uid] for info in kept}) if labels else []
    place = {row: position for position, row in enumerate(used)}
    told = read_targets(cfg, labels.table.keep(used), labels.columns) if labels else None
    refs: list[CaseRef] = []
    for info in kept:
        label_map = next(iter(maps.get(info.uid, ())), None)
        for case_id, source in _volumes(info, cfg.time):
            ref = CaseRef(case_id, source, (), info.patient_id, label_map=label_map)
            if told:
                row = place[row_of[info.uid]]
                ref = replace(ref, target=told.targets[row], split=told.splits[row], weight=told.weights[row])
            refs.append(ref)
    notes: tuple[str, ...] = subject_notes(refs, "their PatientID is empty")
    if not told:
        return Dataset(tuple(refs), cfg.classes or (), notes=notes)
    return Dataset(tuple(refs), told.classes, told.multilabel, told.notes + notes)


def _volumes(info: SeriesInfo, time: int | Literal["all"] | None) -> Iterator[tuple[str, SeriesRef]]:
    """(case, source) of each volume of a series that is used."""
    if info.times == 1 or time is None:
        yield info.uid, SeriesRef(info.files)
    else:
        for moment in range(info.times) if time == "all" else (time,):
            yield f"{info.uid}/t{moment}", SeriesRef(info.files, moment)


def _label_maps(cfg: Config, found: Sequence[SeriesInfo], images: Collection[str]) -> dict[str, list[Path]]:
    """SeriesInstanceUID of images -> the label maps that refer to it."""
    maps: dict[str, list[Path]] = {}
    for info in found:
        if info.is_label_map and info.refers_to in images and cfg.label_maps in (None, info.modality):
            maps.setdefault(info.refers_to, []).extend(info.files)
    return maps


def _choose(
    cfg: Config, images: Sequence[SeriesInfo], labelled: Collection[str] | None
) -> tuple[list[SeriesInfo], Counter[str]]:
    """The series that the rules leave, and how many others there are by reason.

    Where series have labels, only those that have one (`labelled`) are cases.
    """
    left: Counter[str] = Counter()
    kept = []
    for info in images:
        reason = _reason(cfg, info)
        if not reason and labelled is not None and info.uid not in labelled:
            reason = "series not in the table of labels" if cfg.labels else "series without a SEG or RTSTRUCT"
        if reason:
            left[reason] += 1
        else:
            kept.append(info)
    return kept, left


def _reason(cfg: Config, info: SeriesInfo) -> str:
    """Why the rules leave a series out, or ''."""
    rules = cfg.series
    if rules.modality and info.modality != rules.modality:
        return "series of another modality"
    if rules.description and not re.search(rules.description, info.description, re.IGNORECASE):
        return "series of another description"
    if max(1, len(info.files) // info.times) < rules.min_slices:
        return f"series of fewer than {rules.min_slices} slices"
    if isinstance(cfg.time, int) and info.times <= cfg.time:
        return f"series without a volume {cfg.time}"
    return ""


def _check_one_per(one_per: str | None, kept: Sequence[SeriesInfo], row_of: Mapping[str, int]) -> None:
    """Raise where the rules leave several series of what may have one."""
    groups: dict[str, list[SeriesInfo]] = {}
    for info in kept:
        # Where the PatientID is empty, a study is the most that surely is one patient's.
        patient = info.patient_id or info.study_uid
        key = {"study": info.study_uid, "patient": patient, "none": info.uid}.get(one_per or "")
        groups.setdefault(key or str(row_of.get(info.uid, info.uid)), []).append(info)
    several = [group for group in groups.values() if len(group) > 1]
    if several:
        what = {"study": "studies", "patient": "patients"}.get(one_per or "", "rows of the table")
        first = ", ".join(f"{info.modality} of {len(info.files)} files" for info in several[0][:4])
        detail = f"{len(several)} of {len(groups)} {what} have several series, the first one {first}"
        hint = "narrow dataset.series (modality, description, min_slices), or dataset.series.one_per=none for all"
        raise InputError("ambiguous_series", detail, hint)


def _check_kept(kept: Sequence[SeriesInfo], maps: Mapping[str, Sequence[Path]]) -> None:
    """Raise where several label maps refer to one series."""
    several = sum(len(maps.get(info.uid, ())) > 1 for info in kept)
    if several:
        detail = f"{several} of {len(kept)} series have several label maps (SEG or RTSTRUCT)"
        raise InputError("ambiguous_label", detail, "keep one for each series, or set dataset.label_maps")


def _count(left: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()) if count)
