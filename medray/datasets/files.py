"""Files and folders as every layout sees them: listed quickly, junk left out and counted, gaps named."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from medray.config import ConfigError
from medray.types import InputError, Split

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".nrrd", ".dcm")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "dicomdir")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""How people write the three splits, in lower case."""

MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "segmentations")
"""How people call a folder of masks beside images/."""

HIDDEN = "hidden or system"
MAX_JSON_BYTES = 1 << 28


def is_image(name: str) -> bool:
    """Whether the ending is one that medray reads."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_junk(name: str) -> bool:
    """Whether a file or folder was left by an operating system: hidden, `._*`, Thumbs.db, ..."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def stem(name: str) -> str:
    """The file name without its image ending ('a.nii.gz' -> 'a')."""
    suffix = max((end for end in IMAGE_SUFFIXES if name.lower().endswith(end)), key=len, default="")
    return name[: len(name) - len(suffix)]


def absolute(path: Path) -> Path:
    """The path as workers with another working folder find it; symbolic links stay."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 (Path.resolve would follow links)


def require_folder(path: Path, expects: str) -> Path:
    """The absolute path of a folder that exists.

    Raises:
        ConfigError: it does not exist or is a file; `expects` says what the layout wants there.
    """
    folder = absolute(path)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ConfigError([f"dataset.path: '{folder}' {what}; expected {expects}"])
    return folder


def require_file(path: Path, expects: str) -> Path:
    """The absolute path of a file that exists.

    Raises:
        ConfigError: it does not exist or is a folder; `expects` says what the layout wants there.
    """
    file = absolute(path)
    if not file.is_file():
        what = "is a folder, not a file" if file.exists() else "does not exist"
        raise ConfigError([f"dataset.path: '{file}' {what}; expected {expects}"])
    return file


def list_folder(
    folder: Path | str, ignored: Counter[str], wanted: Callable[[str], bool] = is_image
) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images in a folder, each sorted; what else lies there is counted in `ignored`.

    `wanted` tells by its name whether a file is an image.

    Only directory entries are read, no file is opened or asked for its size.

    Raises:
        InputError: `unreadable_folder`.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    ignored[HIDDEN] += 1
                elif entry.is_dir():
                    folders.append(entry.name)
                elif wanted(entry.name):
                    images.append(entry.name)
                else:
                    ignored[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1  # noqa: PTH122 (quick)
    except OSError as error:
        raise InputError("unreadable_folder", f"'{folder}': {error.strerror}", "mend its permissions") from None
    return sorted(folders), sorted(images)


def walk(folder: Path | str, ignored: Counter[str], wanted: Callable[[str], bool] = is_image) -> Iterator[str]:
    """Images below a folder at any depth, as '/'-separated paths relative to it, in order.

    `wanted` tells by its name whether a file is an image.

    Raises:
        InputError: `folder_loop` where a symbolic link leads back up, `unreadable_folder`.
    """
    folders, images = list_folder(folder, ignored, wanted)
    yield from images
    for name in folders:
        below = os.path.join(folder, name)  # noqa: PTH118 (100k of them)
        if Path(below).is_symlink() and Path(folder).resolve().is_relative_to(Path(below).resolve()):
            raise InputError("folder_loop", f"'{below}' is a link to a folder above itself", "remove the link")
        for image in walk(below, ignored, wanted):
            yield f"{name}/{image}"


def missing(paths: Iterable[Path]) -> list[Path]:
    """The paths where there is no file, in order; each folder is listed once instead of asking for every file."""
    present: dict[str, frozenset[str]] = {}
    gone = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in present:
            present[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()  # noqa: PTH208, PTH112
        # The second question is for file systems that know a file under another spelling (case, Unicode form).
        if name not in present[folder] and not path.is_file():
            gone.append(path)
    return gone


def require_files(paths: Sequence[Path], root: Path, what: str) -> None:
    """Check that all files exist.

    Raises:
        InputError: `missing_files` with their number and the first three, relative to `root`.
    """
    gone = missing(paths)
    if gone:
        shown = some([os.path.relpath(path, root) for path in gone])
        raise InputError(
            "missing_files",
            f"{len(gone)} of {len(paths)} {what} do not exist: {shown}",
            f"paths are relative to {root}",
        )


def inside(root: Path, name: str) -> Path:
    """The absolute path of a file that a dataset lists, which must stay below `root`.

    Raises:
        InputError: `escaping_path`.
    """
    relative = Path(os.path.normpath(name.replace("\\", "/")))
    # A colon: an address, or a drive of Windows.
    if relative.is_absolute() or relative.parts[:1] == ("..",) or ":" in "".join(relative.parts[:1]):
        raise InputError(
            "escaping_path", f"'{name}' leads out of the dataset's folder", f"list paths below {root.name}/"
        )
    return root / relative


def read_json(file: Path, expects: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: `broken_json`; `expects` says what the layout wants there.
    """
    if file.stat().st_size > MAX_JSON_BYTES:
        raise InputError("broken_json", f"{file.name} has more than {MAX_JSON_BYTES} bytes", expects)
    try:
        tree = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError("broken_json", f"{file.name} is no valid JSON: {error}", "mend it at that place") from None
    if not isinstance(tree, dict):
        raise InputError("broken_json", f"{file.name} holds a {type(tree).__name__}, not an object", expects)
    return tree


def pair(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[tuple[str, Path, Path]]:
    """(name, image, mask) of each name, in order.

    Raises:
        InputError: `missing_partner` with the names that only one side has.
    """
    lone = [("images without a mask", sorted(images.keys() - masks.keys()))]
    lone += [("masks without an image", sorted(masks.keys() - images.keys()))]
    if any(names for _, names in lone):
        detail = "; ".join(f"{len(names)} {what}: {some(names, 10)}" for what, names in lone if names)
        raise InputError("missing_partner", detail, "an image and its mask have the same name; add or remove files")
    return [(name, images[name], masks[name]) for name in sorted(images)]


def split_folders(folders: Sequence[str]) -> list[tuple[Split | None, str]]:
    """(split, folder) for folders called train, val, test, or (None, '') where none is.

    Raises:
        InputError: `mixed_layout` where other folders lie beside them, or two mean the same split.
    """
    named = {folder: SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES}
    if not named:
        return [(None, "")]
    others = [folder for folder in folders if folder not in named]
    if others:
        raise InputError(
            "mixed_layout",
            f"{some(list(named))} look like splits, but {some(others)} beside them do not",
            "keep only train, val and test there, or only class folders",
        )
    if len(set(named.values())) < len(named):
        raise InputError("mixed_layout", f"two folders for one split: {some(list(named))}", "merge them")
    return [(cast(Split, split), folder) for folder, split in named.items()]


def some(items: Sequence[object], count: int = 3) -> str:
    """The first items, quoted, and '...' where there are more."""
    return ", ".join(f"'{item}'" for item in items[:count]) + (", ..." if len(items) > count else "")


def ignored_notes(ignored: Counter[str]) -> tuple[str, ...]:
    """One line on what was left out of a scan, or none."""
    if not ignored:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
    return (f"ignored {sum(ignored.values())} files or folders that are no images: {kinds}",)
