"""What the header of one DICOM file of a series says, and which files of a folder or an archive are no DICOM at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pydicom.dataset import Dataset

from medray.imaging.dicom import file as dicom
from medray.imaging.dicom import multiframe
from medray.imaging.dicom.elements import modality, text
from medray.imaging.dicom.slices import Plane
from medray.imaging.limits import Limits
from medray.types import InputError

HEADER_BYTES = 64 << 10
"""What is read of a file first; the elements before the pixels seldom take more."""
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x10")
"""Of integer, float and double pixels; of integers in big-endian."""
LABEL_MAPS = frozenset({"SEG", "RTSTRUCT"})
DOCUMENTS = frozenset(
    ["SR", "PR", "KO", "REG", "FID", "RWV", "RTPLAN", "RTRECORD", "RTDOSE", "DOC", "PLAN", "ECG", "EPS", "HD", "AU"]
)
"""Modalities of objects that belong to images or to a person; some have pixels of their own, none is an image."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
SUFFIXES = (".dcm", ".dicom", ".ima")
"""A file with such a name that is no DICOM is damaged, not foreign."""
BARE_STARTS = tuple(bytes([group, 0, element, 0]) for group in (2, 8) for element in (0, 1, 2, 5, 8, 0x16, 0x18))
"""The first elements of a DICOM file without preamble, in little-endian."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is kept of a header."""

    part: Path | bytes
    """The file."""
    patient_id: str
    person: str
    """The PatientID or, without one, name and birth date: to tell two patients apart, never to be shown."""
    uid: str
    """SeriesInstanceUID."""
    study_uid: str
    instance_uid: str
    """SOPInstanceUID."""
    modality: str
    description: str
    refers_to: str
    """SeriesInstanceUID of the one series that a SEG, RTSTRUCT or another object refers to."""
    planes: tuple[Plane, ...]
    """Empty where the file holds no image."""


def read_header(part: Path | bytes, number: int, limits: Limits) -> Header | None:
    """The header of the file `number` of a series; None for a DICOMDIR.

    Raises not_found, not_readable, unsupported_type, what `dicom.parse_header` and `multiframe.planes` raise.
    """
    data = _parse(part, limits)
    with dicom.guarded("an element of the header is damaged"):
        if text(data.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
            return None
        kind, referred = modality(data), set(_referred(data))
        return Header(
            part=part,
            patient_id=text(data, "PatientID"),
            person=text(data, "PatientID")
            or " ".join(text(data, keyword) for keyword in ("PatientName", "PatientBirthDate")).casefold().strip(),
            uid=text(data, "SeriesInstanceUID"),
            study_uid=text(data, "StudyInstanceUID"),
            instance_uid=text(data, "SOPInstanceUID"),
            modality=kind,
            description=text(data, "SeriesDescription"),
            refers_to=referred.pop() if len(referred) == 1 else "",
            planes=() if kind in LABEL_MAPS | DOCUMENTS else multiframe.planes(data, number, limits),
        )


def content_of(part: Path | bytes, limits: Limits) -> bytes:
    """The whole file. Raises not_found, not_readable, unsupported_type, empty_file, too_large."""
    if isinstance(part, bytes):
        return part
    limits.check_path(part)
    return _read(part, -1)


def is_dicom(head: bytes) -> bool:
    """Whether a file starts as DICOM Part 10 does."""
    return head[128:132] == b"DICM"


def is_foreign(name: str, head: bytes) -> bool:
    """Whether the file `name`, of which `head` are the first 132 bytes or more, is none of a series.

    A file that should be one (by its suffix, or empty without any, or DICOM without a preamble) is not foreign:
    to leave it out would be to lose a slice without a word.
    """
    path = PurePath(name)
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or "__MACOSX" in path.parts:
        return True
    if is_dicom(head) or path.suffix.lower() in SUFFIXES or head.startswith(BARE_STARTS):
        return False
    return any(head) or path.suffix[1:].isalpha()


def first_bytes(path: Path) -> bytes:
    """Enough of a file for `is_foreign`. Raises not_readable."""
    # A pipe or a device would be waited on for ever.
    if not path.is_file():
        raise InputError("not_readable", "a link leads nowhere, or a device is among the files")
    return _read(path, 132)


def _parse(part: Path | bytes, limits: Limits) -> Dataset:
    """The elements before the pixels, from the first bytes of the file where they suffice."""
    if isinstance(part, Path):
        size = limits.check_path(part).st_size
        first = _read(part, HEADER_BYTES)
        # A cut between two elements cannot be seen: only the tag of the pixels says that all before it are here.
        if len(first) < size and any(tag in first for tag in PIXEL_TAGS):
            try:
                return dicom.parse_header(first, limits)
            except InputError:
                # The tag was that of an icon, or no tag: the elements go on.
                pass
        part = first if len(first) == size else _read(part, -1)
    limits.check_file(len(part))
    if not is_dicom(part):
        hint = "a bare data set becomes one with dcmtk's dcmconv, or pydicom's dcmread(force=True) and save_as"
        raise InputError("unsupported_type", "the file is no DICOM (Part 10, with 'DICM' behind its preamble)", hint)
    return dicom.parse_header(part, limits)


def _read(path: Path, count: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(count)
    except OSError as error:
        raise InputError("not_readable", f"the file cannot be read ({error.strerror})") from None


def _referred(data: Dataset) -> Iterator[str]:
    """The SeriesInstanceUIDs that a SEG, a presentation state or (three sequences deep) an RTSTRUCT refers to."""
    items = list(data.get("ReferencedSeriesSequence") or ())
    for frame in data.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            items += study.get("RTReferencedSeriesSequence") or ()
    yield from (text(item, "SeriesInstanceUID") for item in items)
