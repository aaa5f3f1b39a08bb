"""De-identification of a file or a tree: every file of a known format is cleaned, written under another name, and
read again; every other file stays where it is.

The table of old and new names re-identifies: it is written beside the key, never beside the images.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from medray.cluster import Mapper
from medray.config import ConfigError
from medray.imaging.deid.keyed import pseudonym
from medray.imaging.deid.types import Cleaned, Profile
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.imaging.reader import SNIFF_BYTES, sniff
from medray.types import InputError

IMAGE_ENDINGS = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")
"""A file of such a name that is no image is a damaged one; of DICOM, `is_foreign` knows."""


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one file."""

    source: str
    """Path below IN, with '/'; it may name a patient."""
    status: Literal["written", "refused", "left_out"]
    target: str = ""
    """Path below OUT."""
    code: str = ""
    detail: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeidReport:
    """What became of all files, in the order of their names."""

    files: tuple[FileOutcome, ...]

    def count(self, status: str) -> int:
        """How many files were written, refused or left_out."""
        return sum(file.status == status for file in self.files)

    @property
    def refused(self) -> dict[str, int]:
        """Files per code of refusal."""
        return dict(sorted(Counter(file.code for file in self.files if file.status == "refused").items()))

    @property
    def warnings(self) -> dict[str, int]:
        """Files per warning: face_visible, burned_in, text_emptied, private_geometry."""
        return dict(sorted(Counter(word for file in self.files for word in file.warnings).items()))


def deidentify(
    source: Path, target: Path, profile: Profile, mapper: Mapper[Any, Any] = map, limits: Limits = DEFAULT_LIMITS
) -> DeidReport:
    """Clean the file or tree `source` into the folder `target`.

    A file that cannot be cleaned, or that is not clean when it is read again, is refused and not written.
    DICOM lands in patient/study/series, other files under the pseudonyms of their folders; equal names stay equal,
    so that an image and its label map still go by one name. Times in the file system are those of the writing.

    Raises:
        ConfigError: there is no `source`, or `target` is not empty, inside `source` or around it.
    """
    source, target = source.absolute(), target.absolute()
    _check_places(source, target)
    root = source if source.is_dir() else source.parent
    names = [file.relative_to(root).as_posix() for file in _files(source)]
    if not names:
        raise ConfigError([f"'{source}' holds no file"])
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"'{target}' cannot be made ({error.strerror})"]) from None
    one = partial(_one_file, root=root, target=target, profile=profile, limits=limits)
    return DeidReport(tuple(mapper(one, names)))


def write_names(file: Path, files: Iterable[FileOutcome]) -> None:
    """The table of old and new names, and why files are missing; readable by its owner alone."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["source", "target", "status", "code", "detail", "warnings"])
        writer.writerows(
            [item.source, item.target, item.status, item.code, item.detail, " ".join(item.warnings)] for item in files
        )


def _check_places(source: Path, target: Path) -> None:
    if not source.exists():
        raise ConfigError([f"'{source}' does not exist"])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError([f"'{target}' exists and is not an empty folder; name a new one"])
    real_source, real_target = source.resolve(), target.resolve()
    if real_target.is_relative_to(real_source) or real_source.is_relative_to(real_target):
        raise ConfigError([f"'{target}' and '{source}' lie in each other; name a folder beside it"])


def _files(source: Path) -> Sequence[Path]:
    if source.is_file():
        return [source]
    return sorted(file for file in source.rglob("*") if _may_be_file(file))


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # In a folder that does not let in: refused later, and so in the report.
        return True


def _one_file(name: str, root: Path, target: Path, profile: Profile, limits: Limits) -> FileOutcome:
    """Read, clean, write, read again; what is not clean does not stay."""
    path = root / name
    try:
        limits.check_path(path)
        cleaned = _clean(path, profile, limits)
        new = _new_name(name, cleaned, profile.key)
        written = target / new
        written.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written.open("xb") as stream:
                stream.write(cleaned.content)
        except FileExistsError:
            raise InputError("duplicate_name", "another file has the same name but for its suffix") from None
        _check_written(written, cleaned)
    except InputError as error:
        left_out = error.code in ("unsupported_type", "empty_file") and _is_of_another_kind(path)
        return FileOutcome(name, "left_out" if left_out else "refused", "", error.code, error.detail)
    return FileOutcome(name, "written", new, warnings=cleaned.warnings)


def _is_of_another_kind(path: Path) -> bool:
    """Whether a file that cannot be cleaned is no lost image, by its name and its first bytes."""
    # Imported where needed: a tree of PNGs never pays for pydicom.
    from medray.imaging.dicom.headers import first_bytes, is_foreign

    return not path.name.lower().endswith(IMAGE_ENDINGS) and is_foreign(path.name, first_bytes(path))


def _clean(path: Path, profile: Profile, limits: Limits) -> Cleaned:
    try:
        with path.open("rb") as stream:
            head = stream.read(SNIFF_BYTES)
            kind = "dicom" if head[128:132] == b"DICM" else sniff(head)
            if kind not in ("dicom", "nifti", "gzip", "png", "jpeg"):
                raise InputError("unsupported_type", f"{kind} files are not de-identified")
            content = head + stream.read()
    except OSError as error:
        raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None
    # Imported where needed: a tree of PNGs never pays for pydicom.
    if kind == "dicom":
        from medray.imaging.deid import dicom as deid_dicom

        return deid_dicom.deidentify(content, profile, limits)
    from medray.imaging.deid import plain as deid_plain

    if kind in ("png", "jpeg"):
        return deid_plain.deidentify_raster(content, limits)
    return deid_plain.deidentify_nifti(content, limits)


def _check_written(written: Path, cleaned: Cleaned) -> None:
    """Raise verification_failed and remove the file where it is not clean."""
    fault = "it was not verified"
    try:
        fault = cleaned.verify(written.read_bytes())
    except InputError as error:
        fault = f"it cannot be read again, {error.code}"
    finally:
        if fault:
            written.unlink()
    if fault:
        raise InputError("verification_failed", fault, "it was not written; please report it")


def _new_name(name: str, cleaned: Cleaned, key: bytes) -> str:
    """Where the file goes: DICOM by its series, others by the pseudonyms of their folders and of their stem."""
    *folders, last = name.split("/")
    if cleaned.folders:
        return "/".join((*cleaned.folders, pseudonym(name, key, "file"))) + cleaned.suffix
    # Another spelling of the suffix (.PNG, .jpeg) counts as part of the name, so that two files stay two.
    stem = last.removesuffix(cleaned.suffix)
    return "/".join(pseudonym(part, key, "name") for part in (*folders, stem)) + cleaned.suffix
