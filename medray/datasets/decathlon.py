"""Medical Segmentation Decathlon layout (Antonelli 2022, 10.1038/s41467-022-30695-9): a folder with dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medray.config import nearest
from medray.datasets.files import inside, is_image, is_junk, read_json, require_file, require_files, some, stem
from medray.datasets.subjects import subject_notes
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import CaseRef, Dataset, InputError, Split

EXPECTS = "a folder with dataset.json, which lists training: [{image, label}] and labels: {'0': name}"
LISTS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}
Entry = tuple[Split, Mapping[str, Any]]


class Config(DatasetSection):
    """Where dataset.json is."""

    name: Literal["decathlon"] = "decathlon"
    path: AbsolutePath
    """The folder, or the JSON file itself."""


def scan(cfg: Config) -> Dataset:
    """References to the cases in dataset.json: an image with a label map, or with a class as its label.

    Images without a label (the challenge's test list) are left out and counted in a note.

    Raises:
        ConfigError: no dataset.json.
        InputError: `broken_json`, `escaping_path`, `missing_files`, `mixed_targets`, `unknown_class`.
    """
    file = require_file(cfg.path if cfg.path.suffix == ".json" else cfg.path / "dataset.json", EXPECTS)
    tree = _load(file)
    root = file.parent
    entries, notes = _entries(tree)
    names = _label_names(tree, entries)
    given = len({split for split, _ in entries}) > 1
    refs = tuple(_reference(root, entry, names, split if given else None) for split, entry in entries)
    maps = [ref.label_map for ref in refs if ref.label_map]
    if maps and len(maps) < len(refs):
        detail = f"{len(maps)} of {len(refs)} labels are label maps, the others classes"
        raise InputError("mixed_targets", detail, "one kind per dataset")
    require_files([ref.source for ref in refs if isinstance(ref.source, Path)], root, "images")
    require_files(maps, root, "label maps")
    notes += subject_notes(refs, "add a key 'subject' beside 'image' and 'label'")
    return Dataset(refs, tuple(names.values()), label_values=tuple(names), notes=notes)


def _load(file: Path) -> dict[str, Any]:
    """The JSON tree."""
    tree = read_json(file, EXPECTS)
    if not isinstance(tree.get("training"), list):
        raise InputError("broken_json", f"{file.name} has no list 'training'; it has {some(list(tree), 10)}", EXPECTS)
    return tree


def _entries(tree: Mapping[str, Any]) -> tuple[list[Entry], tuple[str, ...]]:
    """(split, {image, label}) of each labelled case, and notes on those left out."""
    kept: list[Entry] = []
    junk = unlabelled = 0
    for key, split in LISTS.items():
        for position, entry in enumerate(tree.get(key) or ()):
            item = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                detail = f"{key}[{position}] has no 'image' that is a path"
                raise InputError("broken_json", detail, "several channels belong in one 4D file")
            if is_junk(PurePosixPath(item["image"].replace("\\", "/")).name):
                junk += 1
            elif "label" in item:
                kept.append((split, item))
            elif split == "test":
                unlabelled += 1
            else:
                raise InputError("broken_json", f"{key}[{position}] has no 'label'", EXPECTS)
    notes = (f"left out {unlabelled} test images without a label",) if unlabelled else ()
    return kept, notes + ((f"ignored {junk} hidden files in the lists",) if junk else ())


def _label_names(tree: Mapping[str, Any], entries: Sequence[Entry]) -> dict[int, str]:
    """Label value -> name, in order; written as {'0': name} (Decathlon) or {name: 0}, or taken from the cases."""
    labels = tree.get("labels")
    if labels is None:
        found = {str(entry["label"]) for _, entry in entries if not is_image(str(entry["label"]))}
        if not found:
            raise InputError("broken_json", "there is no 'labels'", "as in {'0': 'background', '1': 'tumour'}")
        return dict(enumerate(sorted(found, key=int if all(map(str.isdigit, found)) else str)))
    if not isinstance(labels, dict):
        raise InputError("broken_json", "'labels' is no object", "as in {'0': 'background', '1': 'tumour'}")
    pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
    if not all(str(value).isdigit() and isinstance(name, str) for value, name in pairs):
        raise InputError(
            "broken_json", "'labels' does not name whole numbers", "as in {'0': 'background', '1': 'tumour'}"
        )
    names = {int(value): name for value, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    if len(names) < len(pairs) or len(set(names.values())) < len(pairs):
        raise InputError("broken_json", "'labels' names a value or a name twice", "one name per value")
    return names


def _reference(root: Path, entry: Mapping[str, Any], names: Mapping[int, str], split: Split | None) -> CaseRef:
    """The case that one entry of a list describes."""
    image = inside(root, entry["image"])
    label = entry["label"]
    case_id = stem(image.relative_to(root).as_posix())
    subject = str(entry.get("subject", ""))
    if isinstance(label, str) and is_image(label) and label not in names.values():
        return CaseRef(case_id, image, (), subject, split, label_map=inside(root, label))
    for position, (value, name) in enumerate(names.items()):
        if not isinstance(label, bool) and (label in (value, name) or label == str(value)):
            return CaseRef(case_id, image, (position,), subject, split)
    known = list(names.values())
    detail = f"label {label!r} of '{case_id}' is neither a label map nor a class; classes are {some(known, 10)}"
    raise InputError("unknown_class", detail, f"name it in 'labels'{nearest(str(label), known)}")
