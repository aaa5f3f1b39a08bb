"""The planes of a DICOM image as what a segmentation of it refers to: images of their own, in the order of the slices.

To highdicom each plane is a single image, and the references are then put right: so a series of files, an enhanced
multi-frame, one volume of a 4D series and a mosaic are all alike. Sources: DICOM PS3.3 C.12.4 (common instance
reference), C.7.6.16.2.6 (derivation image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM, DSfloat

from medray.imaging import archive, reader
from medray.imaging.dicom import series, slices
from medray.imaging.dicom.elements import functional_group, text
from medray.imaging.dicom.headers import content_of
from medray.imaging.dicom.slices import Plane, Volume
from medray.imaging.limits import Limits
from medray.types import InputError, SeriesRef

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""The SOP class that a plane has for highdicom: a single image which may be anywhere or nowhere."""
PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that a segmentation must have, empty where its source does not tell."""
OWNER_GROUPS = (0x0008, 0x0010, 0x0012, 0x0032, 0x0040)
"""Groups of elements that say whose image it is, of which study, and from which device."""


def located(source: SeriesRef | Path | bytes, limits: Limits) -> tuple[Volume, Sequence[Path | bytes]]:
    """The planes of the image in the order of its slices, and the files that they are in, as `series.read`."""
    time = source.time if isinstance(source, SeriesRef) else None
    parts = _parts(source, limits)
    return series.locate(parts, limits, time)[0], parts


def _parts(source: SeriesRef | Path | bytes, limits: Limits) -> Sequence[Path | bytes]:
    if isinstance(source, SeriesRef):
        return source.files
    if isinstance(source, Path):
        if source.is_dir():
            return series.list_folder(source)[0]
        source = content_of(source, limits)
    if reader.sniff(source[: reader.SNIFF_BYTES]) != "archive":
        return (source,)
    return archive.slices(archive.members(source, limits))


def images(volume: Volume, files: Mapping[int, Dataset]) -> list[Dataset]:
    """Each plane as an image without pixels; the first also tells of patient and study."""
    first, data = volume[0], files[volume[0].file]
    shared = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality"):
        setattr(shared, keyword, text(data, keyword))
    shared.SOPClassUID = SECONDARY_CAPTURE
    shared.Rows, shared.Columns = first.size
    if first.spacing:
        shared.PixelSpacing = _decimals(first.spacing)
    placed = bool(first.position and first.orientation and text(data, "FrameOfReferenceUID"))
    if placed:
        thickness = functional_group(data, first.frame, "PixelMeasuresSequence").get("SliceThickness")
        step = _step(volume)
        shared.SliceThickness = thickness or step or None
        if step:
            shared.SpacingBetweenSlices = _decimals([step])[0]
        shared.FrameOfReferenceUID = text(data, "FrameOfReferenceUID")
        shared.ImageOrientationPatient = _decimals(first.orientation)
    elif len(volume) > 1:
        raise InputError("missing_geometry", "FrameOfReferenceUID is missing, which a segmentation must name")
    planes = []
    for number, plane in enumerate(volume):
        image = _owner(data) if number == 0 else Dataset()
        image.update(shared)
        image.SOPInstanceUID = f"2.25.{number}"
        if placed:
            image.ImagePositionPatient = _decimals(plane.position)
        planes.append(image)
    return planes


def _step(volume: Volume) -> float:
    """The distance of slices; 0 for one alone."""
    return float(np.linalg.norm(slices.affine(volume)[:3, 2])) if len(volume) > 1 else 0.0


def _decimals(numbers: Sequence[float]) -> list[DSfloat]:
    """Numbers as DICOM writes them: at most 16 characters."""
    return [DSfloat(number, auto_format=True) for number in numbers]


def _owner(data: Dataset) -> Dataset:
    """A copy of all that `data` says but of its pixels and frames, with what highdicom asks for."""
    # Copies: to set an attribute is to change its element, which is the file's.
    owner = Dataset({tag: copy(data[tag]) for tag in data.keys() if tag.group in OWNER_GROUPS})  # noqa: SIM118
    owner.SeriesNumber = data.get("SeriesNumber")
    for keyword in PATIENT_AND_STUDY:
        value = text(data, keyword)
        kind = DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else str
        setattr(owner, keyword, value if _is_valid(kind, value) else "")
    owner.PatientSex = owner.PatientSex if owner.PatientSex in ("M", "F", "O") else ""
    return owner


def _is_valid(kind: Any, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def refer(data: Dataset, volume: Volume, files: Mapping[int, Dataset]) -> None:
    """Refer to the instances and frames that the planes are, where highdicom refers to the planes."""
    planes = {f"2.25.{number}": plane for number, plane in enumerate(volume)}
    for group in data.PerFrameFunctionalGroupsSequence:
        for item in group.DerivationImageSequence[0].SourceImageSequence:
            # Frames of several segments share an item, which is put right the first time.
            if plane := planes.get(item.ReferencedSOPInstanceUID):
                _refer_to(item, plane, files[plane.file])
    instances = [
        _item(ReferencedSOPClassUID=file.SOPClassUID, ReferencedSOPInstanceUID=file.SOPInstanceUID)
        for file in files.values()
    ]
    data.SourceImageSequence = instances
    data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances


def _refer_to(item: Dataset, plane: Plane, file: Dataset) -> None:
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = file.SOPClassUID, file.SOPInstanceUID
    if int(file.get("NumberOfFrames") or 1) > 1:
        item.ReferencedFrameNumber = plane.frame + 1
    if plane.size != (file.Rows, file.Columns):
        item.SpatialLocationsPreserved = "NO"


def _item(**elements: Any) -> Dataset:
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data
