"""One folder per class, with or without train, val and test above, and with or without a folder per subject below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from medray.config import ConfigError
from medray.datasets.files import (
    ignored_notes,
    list_folder,
    require_folder,
    some,
    split_folders,
    walk,
)
from medray.datasets.subjects import SubjectPattern, subject_notes, with_subjects
from medray.sections.base import AbsolutePath, DatasetSection
from medray.types import CaseRef, Dataset, InputError, Split

EXPECTS = "a folder with one folder of images per class, or train/, val/ and test/ each with one folder per class"


class Config(DatasetSection):
    """Where the class folders are."""

    name: Literal["folder"] = "folder"
    path: AbsolutePath
    subject_pattern: SubjectPattern = None
    """Without it the first folder below a class is the subject, where there is one."""


def scan(cfg: Config) -> Dataset:
    """References to the images in class folders; classes are sorted by name.

    Raises:
        ConfigError: no folder, or no class folders in it.
        InputError: `mixed_layout`, `empty_class`, `subject_pattern`, `unreadable_folder`, `folder_loop`.
    """
    root = require_folder(cfg.path, EXPECTS)
    ignored: Counter[str] = Counter()
    folders, loose = list_folder(root, ignored)
    if not folders:
        beside = f"; {len(loose)} images lie in it directly, a CSV can label them (dataset: table)" if loose else ""
        raise ConfigError([f"dataset.path: '{root}' holds no folder; expected {EXPECTS}{beside}"])
    found = [item for split, folder in split_folders(folders) for item in _class_images(root, folder, split, ignored)]
    classes = tuple(sorted({name for name, _, _ in found}))
    index = {name: position for position, name in enumerate(classes)}
    refs: Sequence[CaseRef] = [
        CaseRef(path, root / path, (index[name],), _subject_folder(path, split), split) for name, path, split in found
    ]
    refs = with_subjects(refs, cfg.subject_pattern)
    notes = (f"ignored {len(loose)} images beside the class folders: {some(loose)}",) if loose else ()
    mend = "dataset.subject_pattern, or a folder per subject below the class"
    return Dataset(tuple(refs), classes, notes=notes + ignored_notes(ignored) + subject_notes(refs, mend))


def _class_images(
    root: Path, above: str, split: Split | None, ignored: Counter[str]
) -> Iterator[tuple[str, str, Split | None]]:
    """(class, path relative to the root, split) of each image in the class folders of one split."""
    classes, loose = list_folder(root / above, ignored) if above else (list_folder(root, Counter())[0], [])
    if not classes:
        raise InputError("empty_class", f"'{above}' holds no class folder", "one folder of images per class")
    if loose:
        ignored[f"images in '{above}' beside the class folders"] += len(loose)
    for name in classes:
        folder = f"{above}/{name}" if above else name
        images = [f"{folder}/{image}" for image in walk(root / folder, ignored)]
        if not images:
            raise InputError(
                "empty_class", f"class folder '{folder}' holds no image", "add images or remove the folder"
            )
        yield from ((name, image, split) for image in images)


def _subject_folder(path: str, split: Split | None) -> str:
    """The folder right below the class: the patient, whatever studies and series lie below."""
    below = path.split("/")[2 if split else 1 :]
    return below[0] if len(below) > 1 else ""
