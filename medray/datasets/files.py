"""Files and folders as every layout sees them: listed quickly, junk left out and counted, gaps named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medray.config import ConfigError
from medray.types import CaseRef, InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".dcm")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
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

HIDDEN = "hidden or system"


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


def list_folder(folder: Path | str, ignored: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images in a folder, each sorted; what else lies there is counted in `ignored`.

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
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    ignored[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1  # noqa: PTH122 (quick)
    except OSError as error:
        raise InputError("unreadable_folder", f"'{folder}': {error.strerror}", "mend its permissions") from None
    return sorted(folders), sorted(images)


def walk(folder: Path | str, ignored: Counter[str]) -> Iterator[str]:
    """Images below a folder at any depth, as '/'-separated paths relative to it, in order.

    Raises:
        InputError: `folder_loop` where a symbolic link leads back up, `unreadable_folder`.
    """
    folders, images = list_folder(folder, ignored)
    yield from images
    for name in folders:
        below = os.path.join(folder, name)  # noqa: PTH118 (100k of them)
        if os.path.islink(below) and os.path.realpath(folder).startswith(os.path.realpath(below)):  # noqa: PTH114
            raise InputError("folder_loop", f"'{below}' is a link to a folder above itself", "remove the link")
        for image in walk(below, ignored):
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


def some(items: Sequence[object], count: int = 3) -> str:
    """The first items, quoted, and '...' where there are more."""
    return ", ".join(f"'{item}'" for item in items[:count]) + (", ..." if len(items) > count else "")


def ignored_notes(ignored: Counter[str]) -> tuple[str, ...]:
    """One line on what was left out of a scan, or none."""
    if not ignored:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
    return (f"ignored {sum(ignored.values())} files or folders that are no images: {kinds}",)


def subject_notes(refs: Sequence[CaseRef], mend: str) -> tuple[str, ...]:
    """A warning where cases have no subject; `mend` says how this layout can be told."""
    unknown = sum(not ref.subject_id for ref in refs)
    if not unknown:
        return ()
    if unknown == len(refs):
        what = "no subject column or pattern: every file counts as a subject of its own"
    else:
        what = f"{unknown} of {len(refs)} cases have no subject: each counts as a subject of its own"
    return (f"{what}; images of one patient may be torn between train and test ({mend})",)
