"""What the elements of a DICOM data set say of an image: numbers that are numbers, spacing, patient, privacy.

Sources: DICOM PS3.3 C.7.6.16 (functional groups), 10.7.1.3 (pixel spacing), C.8.5.5 (ultrasound regions),
PS3.15 annex E (what identifies a patient).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataset import Dataset

from medray.types import Array, InputError

NUMBERS = {
    "PixelSpacing": 2,
    "ImagerPixelSpacing": 2,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
    "SpacingBetweenSlices": 1,
}
"""Elements that must hold so many finite numbers, where they are there and not empty."""
GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
"""The functional groups of a multi-frame image that hold NUMBERS."""
SLICES = ("CT", "MR", "PT")
"""Modalities whose images are nothing without their place in the patient."""
CENTIMETRES = 3
"""Of PhysicalUnitsXDirection, for lengths in ultrasound."""

PEOPLE = ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName")
PERSONAL = (
    "PatientBirthDate",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "OtherPatientIDs",
)
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's patient coordinates point to left and posterior (PS3.3 C.7.6.2.1.1), ours to right and anterior."""
PLACEHOLDERS = frozenset(
    ("anon", "anonymous", "anonymized", "anonymised", "deidentified", "removed", "unknown", "none", "na", "xxx")
)


def check_numbers(data: Dataset) -> None:
    """Raise bad_header, or bad_rescale, where one of NUMBERS is no number, not finite, or one too many or too few."""
    for item in (data, *_group_items(data)):
        for keyword, count in NUMBERS.items():
            if keyword in item and not _are_numbers(item, keyword, count):
                raise InputError(
                    "bad_rescale" if keyword.startswith("Rescale") else "bad_header",
                    f"{keyword} must be {'a finite number' if count == 1 else f'{count} finite numbers'}",
                    "correct the element or export the image again",
                )


def _are_numbers(data: Dataset, keyword: str, count: int) -> bool:
    try:
        value = data.get(keyword)
    except (ValueError, TypeError, ArithmeticError):
        return False
    if value is None or value == "":
        return True
    numbers = [value] if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) else value
    return len(numbers) == count and all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers)


def _group_items(data: Dataset) -> Iterator[Dataset]:
    """The items of a multi-frame image that hold NUMBERS: of all frames, and of each frame."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in data.get(keyword) or ():
            for group in GROUPS:
                yield from frame.get(group) or ()


def functional_group(data: Dataset, frame: int, keyword: str) -> Dataset:
    """The item of a functional group that holds for `frame` (from 0): its own, or the one of all frames.

    Where there is neither, the data set itself, which in a single-frame image holds the same elements.
    """
    own = data.get("PerFrameFunctionalGroupsSequence") or ()
    items = [own[frame]] if frame < len(own) else []
    items += data.get("SharedFunctionalGroupsSequence") or ()
    return next((item[keyword][0] for item in items if item.get(keyword)), data)


def text(data: Dataset, keyword: str) -> str:
    """The first value of an element as plain text; '' where it is missing or empty."""
    value = data.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = value[0] if len(value) else ""
    return "" if value is None else str(value).replace("\0", "").strip()


def integer(data: Dataset, keyword: str, default: int | None = None) -> int:
    """The one integer in an element. Raises bad_header where it is none, or missing without a default."""
    try:
        value = data.get(keyword)
    except (ValueError, TypeError, ArithmeticError):
        value = "no number"
    if value is None or value == "":
        if default is None:
            raise InputError("bad_header", f"{keyword} is missing")
        return default
    if not isinstance(value, int):
        raise InputError("bad_header", f"{keyword} is not one whole number")
    return int(value)


def modality(data: Dataset) -> str:
    """The DICOM code (CT, MR, DX, US, ...); OT, other, where the file does not say."""
    return text(data, "Modality").upper() or "OT"


def spacing_mm(data: Dataset) -> tuple[float, float] | None:
    """The distance of rows and of columns: at the patient, else at the detector, else by an ultrasound's calibration.

    None where the file does not tell. Raises bad_header where one is not positive, and missing_geometry for a
    slice of a volume (CT, MR, PT) without spacing or position.
    """
    measures = functional_group(data, 0, "PixelMeasuresSequence")
    found = measures.get("PixelSpacing") or data.get("ImagerPixelSpacing") or _region_spacing(data)
    placed = functional_group(data, 0, "PlanePositionSequence").get("ImagePositionPatient")
    if modality(data) in SLICES and not (measures.get("PixelSpacing") and placed):
        raise InputError(
            "missing_geometry",
            "PixelSpacing or ImagePositionPatient is missing, without which a slice has neither size nor place",
            "export the original image again",
        )
    if not found:
        return None
    row, column = (float(edge) for edge in found)
    if min(row, column) <= 0:
        raise InputError("bad_header", f"the pixel spacing is {row:g} x {column:g} mm, which must be positive")
    return row, column


def _region_spacing(data: Dataset) -> tuple[float, float] | None:
    """The spacing of an ultrasound image whose calibrated regions all agree."""
    regions = data.get("SequenceOfUltrasoundRegions") or ()
    keys = ("PhysicalUnitsYDirection", "PhysicalUnitsXDirection", "PhysicalDeltaY", "PhysicalDeltaX")
    told = {tuple(region.get(key) for key in keys) for region in regions}
    if len(told) != 1:
        return None
    units_y, units_x, row, column = told.pop()
    if (units_y, units_x) != (CENTIMETRES, CENTIMETRES) or not row or not column:
        return None
    return abs(float(row)) * 10, abs(float(column)) * 10


def attributes(data: Dataset) -> dict[str, str]:
    """sex (F, M, O), age_band (decades; 90+ above, as HIPAA asks) and scanner, where the file tells them."""
    sex = text(data, "PatientSex").upper()
    scanner = f"{text(data, 'Manufacturer')} {text(data, 'ManufacturerModelName')}".strip()
    told = {
        "sex": sex if sex in ("F", "M", "O") else "",
        "age_band": _age_band(data),
        "scanner": "".join(letter for letter in scanner if letter.isprintable())[:64],
    }
    return {name: value for name, value in told.items() if value}


def _age_band(data: Dataset) -> str:
    age = re.fullmatch(r"(\d{3})([DWMY])", text(data, "PatientAge").upper())
    dates = [re.fullmatch(r"(\d{4})(\d{4})", text(data, keyword)) for keyword in ("PatientBirthDate", "StudyDate")]
    if age:
        years = int(age[1]) if age[2] == "Y" else int(age[1]) // {"D": 365, "W": 52, "M": 12}[age[2]]
    elif dates[0] and dates[1]:
        years = int(dates[1][1]) - int(dates[0][1]) - (dates[1][2] < dates[0][2])
    else:
        return ""
    if not 0 <= years < 130:
        return ""
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def names_patient(data: Dataset) -> bool:
    """Whether the header tells who the patient is, or says that the pixels do (BurnedInAnnotation).

    It does where an element names a person by another word than ANON and its like, the PatientID or a code (one
    word with digits, as SUBJ-007), or holds a birth date, an address, a telephone number or another ID of the
    patient; not where it says that the identity was removed (PatientIdentityRemoved). A PatientID alone, a date of
    the study or a private element is no sign: every file has them, and a pseudonym looks like a hospital's number.
    """
    if text(data, "BurnedInAnnotation").upper() == "YES":
        return True
    if text(data, "PatientIdentityRemoved").upper() == "YES":
        return False
    known = text(data, "PatientID")
    return any(_is_name(text(data, keyword), known) for keyword in PEOPLE) or any(
        text(data, keyword) for keyword in PERSONAL
    )


def _is_name(name: str, patient_id: str) -> bool:
    letters = "".join(letter for letter in name if letter.isalpha()).lower()
    code = re.fullmatch(r"[\w.-]*\d[\w.-]*", name.strip("^ "))
    return bool(letters) and letters not in PLACEHOLDERS and not code and name.strip("^ ") != patient_id


def implausible(data: Dataset, values: Array) -> bool:
    """Whether a tenth of a CT lies where no tissue, air or metal does: its samples were read with the wrong sign.

    The lowest value is left out: scanners fill what they did not measure with one, often far below air.
    """
    if modality(data) != "CT":
        return False
    outside = ((values < -1100) & (values > values.min())) | (values > 5000)
    return float(np.count_nonzero(outside)) > 0.1 * values.size
