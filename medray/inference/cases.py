"""From places to cases: files, folders, DICOM series and archives, each under a name that is safe as a folder's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medray.datasets.files import is_junk
from medray.imaging import archive
from medray.imaging.dicom.headers import SUFFIXES as DICOM_SUFFIXES
from medray.imaging.limits import DEFAULT_LIMITS
from medray.imaging.reader import SNIFF_BYTES, SUFFIXES, case_id_of, sniff
from medray.inference import records, table
from medray.inference.records import ANSWER, Record
from medray.types import InputError, SeriesRef

Place = tuple[Path, Path | SeriesRef | InputError]
"""What to call an image, and the image or why it cannot even be listed."""
ENDINGS = (".nii.gz", *(end for ends in SUFFIXES.values() for end in ends), *DICOM_SUFFIXES)
"""Of names in archives: what a file is called still says what it is meant to be."""
LONGEST = 60
"""Characters of a case's name: with four bytes each, and a number, a file system takes it."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image to answer for."""

    place: Path
    """What to call it to a person; in an archive as if that were a folder."""
    source: Path | SeriesRef | InputError
    """Absolute paths; or why it cannot even be listed."""
    stem: str
    """What its folder would be called, if no other case were called so."""


@dataclass(frozen=True, slots=True)
class Item:
    """A case with a folder of its own."""

    place: Path
    source: Path | SeriesRef | InputError
    name: str
    content: str = ""
    """See `records.content_of`; empty while nobody asked."""


def find(places: Sequence[Path], axes: int, out: Path | None, unpacked: Path) -> list[Found]:
    """The cases that `places` name, for a model of images of `axes`.

    An archive of one DICOM series or one image is one case; one of several is as if it were a folder. Archives are
    unpacked to `unpacked`, by names that medray gives. What lies in `out` is left out. Raises ConfigError as
    `table.image_files`.
    """
    files = [file.absolute() for file in table.image_files(places, out)]
    roots = {place.absolute() for place in places}
    packed = [file for file in files if _is_archive(file)]
    known = set(packed)
    found: list[Place] = list(table.sources([file for file in files if file not in known], axes))
    for number, file in enumerate(packed):
        found += _inside(file, axes, unpacked / f"{number:05d}")
    return [Found(place, source, stem(place, roots)) for place, source in found]


def stem(place: Path, roots: set[Path]) -> str:
    """A name of one folder for `place`: its path from the root that it was found in, of harmless characters."""
    root = next((path for path in (place, *place.parents) if path in roots), place.parent)
    relative = place.relative_to(root) if root != place else Path(place.name)
    folders = list(relative.parent.parts)
    if root in roots and root != place and (len(roots) > 1 or root.is_file()):
        folders.insert(0, case_id_of(root))
    plain = unicodedata.normalize("NFC", "_".join([*folders, case_id_of(relative)]))
    plain = re.sub(r"[^\w.-]+", "_", plain)[:LONGEST].strip("._-")
    return plain or "case"


def items(
    found: Sequence[Found], out: Path | None, reserved: Sequence[str] = ()
) -> Iterator[tuple[Item, Record | None]]:
    """Each case with its folder's name, which no other has, and what an earlier command left there.

    A folder belongs to the image that it was made for, wherever that has been moved to since; others get the next
    number. Nothing that medray did not write is ever taken for a case's folder.
    """
    taken = {name.casefold() for name in reserved}
    for one in found:
        content, number = "", 0
        while True:
            number += 1
            name = one.stem if number == 1 else f"{one.stem}-{number}"
            if name.casefold() in taken:
                continue
            folder = out / name if out else None
            if folder is None or not folder.exists():
                record = None
                break
            if not (folder / ANSWER).exists():
                continue
            record = records.load(folder)
            if record and not content and not isinstance(one.source, InputError):
                content = records.content_of(one.source)
            if record is None or str(one.place) == record.place or (content and content == record.content):
                break
        taken.add(name.casefold())
        yield Item(one.place, one.source, name, content), record


def _is_archive(file: Path) -> bool:
    if file.suffix.lower() not in archive.ARCHIVE_SUFFIXES:
        return False
    try:
        with file.open("rb") as stream:
            return sniff(stream.read(SNIFF_BYTES)) == "archive"
    except (OSError, InputError):
        return False  # the reader says what is wrong


def _inside(file: Path, axes: int, folder: Path) -> list[Place]:
    """(what to call it, the image) for each image in an archive, or the archive's refusal."""
    try:
        DEFAULT_LIMITS.check_path(file)
        packed = archive.members(file.read_bytes(), DEFAULT_LIMITS)
    except InputError as error:
        return [(file, error)]
    except OSError as error:
        return [(file, InputError("not_readable", f"the file cannot be read ({error.strerror})"))]
    packed = [item for item in packed if not any(map(is_junk, PurePosixPath(item[0]).parts))]
    if archive.slices(packed):  # what comes with an export and is no DICOM does not count
        packed = [item for item in packed if archive.slices([item])]
    if not packed:
        return [(file, InputError("unsupported_type", "the archive holds no image"))]
    folder.mkdir(parents=True)
    shown: dict[Path, Path] = {}
    for number, (name, data) in enumerate(packed):
        ending = next((end for end in ENDINGS if name.lower().endswith(end)), "")
        target = folder / f"{number:05d}{ending}"
        target.write_bytes(data)
        shown[target] = file / name
    found = list(table.sources(list(shown), axes, shown))
    return [(file, found[0][1])] if len(found) == 1 else list(found)
