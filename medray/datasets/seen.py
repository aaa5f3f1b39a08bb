"""A look at a path: names and a few first bytes, quick whatever lies there."""

from __future__ import annotations

import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from medray.config import ConfigError
from medray.datasets.files import is_image, is_junk, some

FIRST_FILES = 20
"""Files of which the first bytes may be read."""
MOST_FOLDERS = 500
"""Folders that a search for the first files may list."""
HEADER_BYTES = 1 << 16


Names = tuple[list[str], list[str]]
"""Of the folders and of the files in a folder."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What lies at a path: a file, or a folder with the names in it."""

    path: Path
    is_file: bool
    folders: Sequence[str] = ()
    files: Sequence[str] = ()
    listed: dict[Path, Names] = field(default_factory=dict, compare=False, repr=False)
    """What was listed before: no folder is listed twice."""

    @property
    def summary(self) -> str:
        """In a few words."""
        if self.is_file:
            return "a file"
        endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in self.files)  # noqa: PTH122 (quick)
        kinds = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
        inner = f"{len(self.folders)} folders" + (f" {some(self.folders)}" if self.folders else "")
        return f"{inner}, {len(self.files)} files" + (f": {kinds}" if kinds else "")

    def names_in(self, folder: Path) -> Names:
        """Names of the folders and of the files in a folder, each sorted, junk left out; none if it is unreadable."""
        if folder not in self.listed:
            try:
                self.listed[folder] = _list(folder)
            except OSError:
                self.listed[folder] = ([], [])
        return self.listed[folder]

    def first_files(self, folder: Path, count: int = FIRST_FILES) -> list[Path]:
        """The first files below a folder, of each folder before those of its folders; links are not followed."""
        return list(islice(self._below(folder), count))

    def first_image(self, folder: Path) -> str:
        """The name of the first image below a folder, '' where the first files are none."""
        return next((file.name for file in islice(self._below(folder), FIRST_FILES) if is_image(file.name)), "")

    def _below(self, folder: Path) -> Iterator[Path]:
        waiting = [folder]
        for _ in range(MOST_FOLDERS):
            if not waiting:
                return
            place = waiting.pop()
            folders, files = self.names_in(place)
            yield from (place / name for name in files)
            waiting += [place / name for name in reversed(folders) if not (place / name).is_symlink()]


def look(path: Path) -> Seen:
    """What lies at a path, junk left out.

    Raises:
        ConfigError: nothing does, or it cannot be read.
    """
    if path.is_file():
        return Seen(path, True)
    try:
        names = _list(path)
    except OSError as error:
        raise ConfigError([f"dataset.path: '{path}': {error.strerror}; expected a file or a folder"]) from None
    return Seen(path, False, *names, {path: names})


def _list(folder: Path) -> Names:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_junk(entry.name):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def has_keys(file: Path, keys: Sequence[str]) -> bool:
    """Whether a JSON file has all these keys somewhere; it is searched, not read."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)
    # ValueError: an empty file cannot be mapped.
    except (OSError, ValueError):
        return False


def has_columns(file: Path, *roles: Sequence[str]) -> bool:
    """Whether a table's header has a usual name of each role."""
    with file.open("rb") as stream:
        header = stream.readline(HEADER_BYTES).decode("utf-8-sig", "replace").lower()
    names = {name.strip().strip('"') for name in re.split("[,;\t]", header)}
    return all(names & set(role) for role in roles)


def is_dicom(file: Path) -> bool:
    """Whether a file has DICOM's magic word (PS3.10 7.1)."""
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
