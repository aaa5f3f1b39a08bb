"""COCO instances (Lin 2014, 10.1007/978-3-319-10602-1_48): JSON files with images, annotations and categories."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from medray.config import ConfigError
from medray.datasets.boxes import Boxed, BoxSection, check_boxes
from medray.datasets.files import SPLIT_NAMES, absolute, inside, is_junk, missing, read_json, require_files, some
from medray.datasets.subjects import SubjectPattern, subject_notes, with_subjects
from medray.sections.base import AbsolutePath
from medray.types import Box, CaseRef, Dataset, InputError, Split

EXPECTS = "a JSON file with the lists images, annotations (bbox) and categories, or a folder with one per split"
LISTS = ("images", "annotations", "categories")
Item = Mapping[str, Any]


class Config(BoxSection):
    """Where the annotations and the images are."""

    name: Literal["coco"] = "coco"
    path: AbsolutePath
    """The JSON file, or a folder with one per split: in it, in annotations/, or in <split>/ (as Roboflow writes)."""
    images: AbsolutePath | None = None
    """The folder of the images; by default the JSON's own, images/ or the split's beside it or above."""
    subject_pattern: SubjectPattern = None


@dataclass(frozen=True, slots=True)
class _Part:
    """One JSON file: its lists, its split, and where its images are."""

    tree: Mapping[str, list[Item]]
    split: Split | None
    root: Path


def scan(cfg: Config) -> Dataset:
    """References to the images in COCO files with their boxes; 'iscrowd' is to be ignored.

    Images without an annotation are cases without an object. Classes are in the order of the category ids.

    Raises:
        ConfigError: no file, or several without a split in their name.
        InputError: `bad_box`, `broken_json`, `escaping_path`, `missing_files`, `mixed_classes`, `unknown_class`,
            `unknown_image`, `subject_pattern`.
    """
    parts = [_open(cfg, file, split) for file, split in _files(absolute(cfg.path))]
    categories = _categories(parts)
    index = {number: position for position, number in enumerate(categories)}
    sources, splits, cases = [], [], []
    for part in parts:
        for source, case in _cases(part, index):
            sources.append(source)
            splits.append(part.split)
            cases.append(case)
    boxes, notes = check_boxes(cases, cfg.drop_bad_boxes)
    rows = zip(cases, sources, splits, boxes, strict=True)
    refs = [CaseRef(case.case_id, source, split=split, boxes=kept) for case, source, split, kept in rows]
    refs = with_subjects(refs, cfg.subject_pattern)
    notes += subject_notes(refs, "dataset.subject_pattern")
    return Dataset(tuple(refs), tuple(categories.values()), notes=notes)


def _files(path: Path) -> list[tuple[Path, Split | None]]:
    """The JSON files and their splits; a lone file has none."""
    if path.is_file():
        return [(path, None)]
    places = [path, path / "annotations", *(path / name for name in SPLIT_NAMES)]
    # A set: file systems that do not tell capitals apart show a folder under two names.
    found = sorted({file for place in places for file in place.glob("*.json") if not is_junk(file.name)})
    found = [file for file in found if file.name.startswith("instances_")] or found
    if not found:
        raise ConfigError([f"dataset.path: no JSON file in '{path}'; expected {EXPECTS}"])
    if len(found) == 1:
        return [(found[0], None)]
    splits = [_split_of(file) for file in found]
    if None in splits:
        lost = some([file.name for file, split in zip(found, splits, strict=True) if split is None])
        raise ConfigError([f"dataset.path: several JSON files, and {lost} names no split; name the one file to use"])
    return list(zip(found, splits, strict=True))


def _split_of(file: Path) -> Split | None:
    """The split that the file's or its folder's name tells."""
    for name in (file.stem, file.parent.name):
        words = [SPLIT_NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_NAMES]
        if words:
            return cast(Split, words[-1])
    return None


def _open(cfg: Config, file: Path, split: Split | None) -> _Part:
    """The lists of a JSON file, and the folder where its images are."""
    tree = read_json(file, EXPECTS)
    for key in LISTS:
        if not isinstance(tree.get(key), list) or not all(isinstance(item, dict) for item in tree[key]):
            detail = f"{file.name} has no list '{key}' of objects; it has {some(list(tree), 10)}"
            raise InputError("broken_json", detail, EXPECTS)
    for position, item in enumerate(tree["images"]):
        if not isinstance(item.get("id"), int | str) or not isinstance(item.get("file_name"), str):
            raise InputError("broken_json", f"{file.name}: images[{position}] has no id or file_name", EXPECTS)
    return _Part(tree, split, _image_root(cfg, file, tree["images"]))


def _image_root(cfg: Config, file: Path, images: Sequence[Item]) -> Path:
    """The first usual folder in which the first image lies."""
    here, above = file.parent, file.parent.parent
    word = file.stem.removeprefix("instances_")
    usual = [here, here / "images", here / word, here / "images" / word]
    usual += [above / "images" / word, above / word, above / "images", above]
    places = [cfg.images] if cfg.images else list(dict.fromkeys(usual))
    first = [image["file_name"] for image in images[:1]]
    holding = [place for place in places if not missing([inside(place, name) for name in first])]
    return holding[0] if holding else places[0]


def _categories(parts: Sequence[_Part]) -> dict[object, str]:
    """Category id -> name, in the order of the ids; the same in all files."""
    found = []
    for part in parts:
        items = part.tree["categories"]
        if not all(isinstance(item.get("id"), int) and isinstance(item.get("name"), str) for item in items):
            raise InputError("broken_json", "a category has no whole number as id, or no name", EXPECTS)
        names = {item["id"]: item["name"] for item in sorted(items, key=lambda item: int(item["id"]))}
        if len(names) < len(items) or len(set(names.values())) < len(items):
            raise InputError("broken_json", "'categories' names an id or a name twice", "one name per id")
        found.append(names)
    if any(names != found[0] for names in found):
        raise InputError("mixed_classes", "the JSON files have different categories", "give all the same")
    return dict(found[0])


def _cases(part: _Part, index: Mapping[object, int]) -> Iterator[tuple[Path, Boxed]]:
    """(image, its boxes) of each image in a file."""
    images = {item["id"]: item for item in part.tree["images"]}
    if len(images) < len(part.tree["images"]):
        raise InputError("broken_json", "'images' has an id twice", "one id per image")
    boxes: dict[object, list[Box]] = {number: [] for number in images}
    for item in part.tree["annotations"]:
        number = item.get("image_id")
        if not isinstance(number, int | str) or number not in images:
            raise InputError("unknown_image", f"an annotation is of image {number!r}, which is not listed", EXPECTS)
        boxes[number].append(_box(item, index, images[number]["file_name"]))
    paths = {number: inside(part.root, item["file_name"]) for number, item in images.items()}
    require_files(list(paths.values()), part.root, "images")
    for number, item in images.items():
        name = paths[number].relative_to(part.root).as_posix()
        rows, columns = item.get("height"), item.get("width")
        size = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
        yield paths[number], Boxed(f"{part.split}/{name}" if part.split else name, size, boxes[number])


def _box(item: Item, index: Mapping[object, int], image: str) -> Box:
    """The box in voxel indices, axes (row, column): x=0 is the left face of column 0, which is at -1/2."""
    category = item.get("category_id")
    if not isinstance(category, int) or category not in index:
        detail = f"'{image}' has a box of category {category!r}; there are {some(list(index), 10)}"
        raise InputError("unknown_class", detail, "list it in 'categories'")
    bbox = item.get("bbox")
    numbers = bbox if isinstance(bbox, list) and len(bbox) == 4 else [math.nan]
    if not all(isinstance(number, int | float) for number in numbers):
        numbers = [math.nan]
    x, y, width, height = map(float, numbers) if len(numbers) == 4 else [math.nan] * 4
    low, high = (y - 0.5, x - 0.5), (y + height - 0.5, x + width - 0.5)
    return Box(low, high, index[category], bool(item.get("iscrowd")))
