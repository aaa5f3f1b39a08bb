"""Pascal VOC layout (Everingham 2010, 10.1007/s11263-009-0275-4): JPEGImages, Annotations/*.xml, ImageSets/Main."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from xml.etree import ElementTree

from medray.datasets.boxes import Boxed, BoxSection, check_boxes, class_index
from medray.datasets.files import SPLIT_NAMES, ignored_notes, list_folder, require_folder, some, stem
from medray.datasets.subjects import SubjectPattern, subject_notes, with_subjects
from medray.sections.base import AbsolutePath
from medray.types import Box, CaseRef, Dataset, InputError, Split

EXPECTS = "a folder with JPEGImages/, Annotations/ (one .xml per image) and ImageSets/Main/{train,val,test}.txt"
MAX_XML_BYTES = 4 << 20
CORNERS = ("ymin", "xmin", "ymax", "xmax")


class Config(BoxSection):
    """Where the folders are."""

    name: Literal["voc"] = "voc"
    path: AbsolutePath
    classes: tuple[str, ...] | None = None
    """Names in order; by default those in the annotations, sorted."""
    first_pixel: Literal[0, 1] = 1
    """1 as VOC has it: xmin=1, xmax=W (inclusive) is the whole width. 0 as other tools write it: xmin=0, xmax=W."""
    subject_pattern: SubjectPattern = None


@dataclass(frozen=True, slots=True)
class _Object:
    """An object as its annotation has it."""

    name: str
    corners: tuple[float, ...]
    """ymin, xmin, ymax, xmax; not a number where it is not one."""
    difficult: bool


@dataclass(frozen=True, slots=True)
class _Annotation:
    """What one .xml says."""

    size: tuple[int, int] | None
    objects: tuple[_Object, ...]


def scan(cfg: Config) -> Dataset:
    """References to annotated images with their boxes; 'difficult' objects are to be ignored.

    A box whose corners coincide in a row or a column is a click, not an object of one pixel: `bad_box`.

    Raises:
        ConfigError: no such folders.
        InputError: `bad_box`, `broken_xml`, `missing_files`, `unknown_class`, `split_overlap`, `subject_pattern`,
            `duplicate_case`.
    """
    require_folder(cfg.path, EXPECTS)
    ignored: Counter[str] = Counter()
    names = list_folder(require_folder(cfg.path / "Annotations", EXPECTS), Counter(), lambda n: n.endswith(".xml"))[1]
    annotated = [name.removesuffix(".xml") for name in names]
    images = _images(require_folder(cfg.path / "JPEGImages", EXPECTS), ignored)
    splits, notes = _splits(cfg.path / "ImageSets" / "Main", annotated)
    for what, there in (("annotations", set(annotated)), ("images", images.keys())):
        gone = [case_id for case_id in splits if case_id not in there]
        if gone:
            detail = f"{len(gone)} of {len(splits)} cases have no {what}: {some(gone)}"
            raise InputError("missing_files", detail, "add them, or take the cases off the lists")
    found = {case_id: _read(cfg.path / "Annotations" / f"{case_id}.xml") for case_id in splits}
    classes = cfg.classes or tuple(sorted({item.name for each in found.values() for item in each.objects}))
    index = {name: position for position, name in enumerate(classes)}
    cases = [
        Boxed(case_id, each.size, [_box(item, class_index(index, item.name, case_id), cfg) for item in each.objects])
        for case_id, each in found.items()
    ]
    boxes, box_notes = check_boxes(cases, cfg.drop_bad_boxes)
    refs = with_subjects(
        [CaseRef(i, images[i], split=splits[i], boxes=kept) for i, kept in zip(splits, boxes, strict=True)],
        cfg.subject_pattern,
    )
    notes += box_notes + ignored_notes(ignored) + subject_notes(refs, "dataset.subject_pattern")
    return Dataset(tuple(refs), classes, notes=notes)


def _images(folder: Path, ignored: Counter[str]) -> dict[str, Path]:
    """Name without ending -> image."""
    names = list_folder(folder, ignored)[1]
    times = Counter(map(stem, names))
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise InputError("duplicate_case", f"{len(twice)} images have two endings: {some(twice)}", "keep one of each")
    return {stem(name): folder / name for name in names}


def _splits(folder: Path, annotated: Sequence[str]) -> tuple[dict[str, Split | None], tuple[str, ...]]:
    """Case -> its split in the official lists, or None for all where there are no lists; and notes."""
    lists = {name: folder / f"{name}.txt" for name in ("train", "val", "trainval", "test")}
    there = {name: path.read_text(encoding="utf-8").split() for name, path in lists.items() if path.is_file()}
    if "train" in there or "val" in there:
        there.pop("trainval", None)
    if not there:
        return dict.fromkeys(annotated), ("there is no list in ImageSets/Main: all annotations are used",)
    splits: dict[str, Split | None] = {}
    for name, cases in there.items():
        # trainval is everything that is not for testing: train, of which the experiment cuts its own val.
        split = cast(Split, SPLIT_NAMES.get(name, "train"))
        overlap = [case for case in cases if splits.get(case, split) != split]
        if overlap:
            detail = f"{len(overlap)} cases are in {name}.txt and in another list: {some(overlap)}"
            raise InputError("split_overlap", detail, "keep each case in one list")
        splits |= dict.fromkeys(cases, split)
    unlisted = len(set(annotated) - splits.keys())
    note = f"left out {unlisted} annotated images that are in no list of ImageSets/Main"
    return splits, (note,) if unlisted else ()


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE, and with it every entity, before any is expanded."""

    def doctype(self, *_: object) -> None:
        raise InputError("broken_xml", "a DOCTYPE has no place in an annotation", "remove it")


def _read(file: Path) -> _Annotation:
    """The content of one annotation."""
    if file.stat().st_size > MAX_XML_BYTES:
        raise InputError("broken_xml", f"'{file.stem}' has more than {MAX_XML_BYTES} bytes", "split the image")
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))  # noqa: S314
    # LookupError, ValueError: an encoding that does not exist, or that expat cannot use.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError("broken_xml", f"'{file.stem}' is no valid XML: {error}", "mend it at that place") from None
    rows, columns = (_number(root.findtext(f"size/{edge}")) for edge in ("height", "width"))
    size = (int(rows), int(columns)) if rows >= 1 and columns >= 1 else None
    objects = (
        _Object(
            (item.findtext("name") or "").strip(),
            tuple(_number(item.findtext(f"bndbox/{corner}")) for corner in CORNERS),
            (item.findtext("difficult") or "").strip() == "1",
        )
        for item in root.findall("object")
    )
    return _Annotation(size, tuple(objects))


def _number(text: str | None) -> float:
    """The number that a text is, or not a number."""
    try:
        number = float(text or "nan")
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _box(item: _Object, target: int, cfg: Config) -> Box:
    """The box in voxel indices, axes (row, column): pixel 1 of VOC is index 0 and covers [-1/2, 1/2]."""
    low, high = item.corners[:2], item.corners[2:]
    if any(first >= last for first, last in zip(low, high, strict=True)):
        faces_low, faces_high = low, high
    else:
        faces_low = tuple(corner - cfg.first_pixel - 0.5 for corner in low)
        faces_high = tuple(corner - 0.5 for corner in high)
    return Box(faces_low, faces_high, target, item.difficult)
