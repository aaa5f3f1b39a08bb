"""De-identification of a DICOM file: what is refused, what is cleaned, how it is marked, and the look at the result."""

from __future__ import annotations

import re
import warnings
import zlib
from functools import partial
from io import BytesIO
from typing import Any

from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medray.imaging.deid.canaries import Canaries
from medray.imaging.deid.keyed import pseudonym, shift_days
from medray.imaging.deid.profile import Cleaning, clean, empty_leaks, leaking
from medray.imaging.deid.types import Cleaned, Profile
from medray.imaging.limits import Limits
from medray.types import InputError

BURNED_IN_MODALITIES = frozenset({"BDUS", "ES", "GM", "IVUS", "OT", "RF", "SC", "US", "XA", "XC"})
"""Modalities whose machines or capture programs draw the patient's name into the image."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SCREEN_CONVERSIONS = frozenset({"DF", "DRW", "DV", "SD", "WSD"})
"""ConversionType of digitised film, drawings, video, scanned documents and workstation screens."""
ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
DIRECTORY = "1.2.840.10008.1.3.10"
HEAD = re.compile(
    r"HEAD|BRAIN|FACE|FACIAL|SKULL|ORBIT|SINUS|CRANI|CEREB|NEURO|SKALP|SCALP|MPRAGE|\bIAC\b|PITUIT|KOPF|SCHAEDEL"
)
FACE_MODALITIES = frozenset({"CT", "MR", "PT"})
MAX_INFLATION = 100
"""A deflated data set that grows more than this is a bomb: pixels and text deflate by less than 20."""
BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
SHIFTED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
METHOD = "DICOM PS3.15 annex E basic profile, by medray"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
OWN = frozenset(
    {"DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientIdentityRemoved", "PatientID"}
    | {"PatientName", "LongitudinalTemporalInformationModified", "ImplementationVersionName"}
)
"""Attributes that medray itself writes: they are no place for a patient's words."""


def deidentify(content: bytes, profile: Profile, limits: Limits) -> Cleaned:
    """The file under the basic profile, in its own transfer syntax, pixels untouched.

    Raises InputError: burned_in, corrupt, bad_header, unsupported_type, too_large_decompressed.
    Warns: face_visible, burned_in (where it was allowed), text_emptied (a kept attribute repeated what was removed),
    private_geometry (a mosaic, which cannot be read as a volume without the private attributes that are gone).
    """
    dataset = _guarded(_read, content, limits)
    cleaned: Cleaned = _guarded(_deidentify, dataset, profile)
    return cleaned


def _guarded(step: Any, *arguments: Any) -> Any:
    """`step`, where pydicom's warnings are silent and whatever it raises means the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return step(*arguments)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            detail = f"an attribute or its encoding is damaged ({type(error).__name__})"
            raise InputError("corrupt", detail, "export the file again") from error


def _read(content: bytes, limits: Limits) -> FileDataset:
    _check_inflated(content)
    limits.check_file(len(content))
    try:
        dataset = dcmread(BytesIO(content))
    except InvalidDicomError:
        raise InputError("unsupported_type", "the content is not DICOM") from None
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        raise InputError("bad_header", "the file does not say its transfer syntax", "export the file again")
    if not dataset.get("SOPClassUID") or not dataset.get("SOPInstanceUID"):
        raise InputError("bad_header", "the file has no SOP class or instance UID", "export the file again")
    if dataset.SOPClassUID == DIRECTORY:
        raise InputError("unsupported_type", "a DICOMDIR, which lists files under their old names")
    if dataset.SOPClassUID.startswith(ENCAPSULATED):
        raise InputError("unsupported_type", "a document inside DICOM: its pages cannot be cleaned")
    if _is_short(dataset):
        raise InputError("truncated", "there are fewer pixels than the header announces", "copy the file again")
    return dataset


def _check_inflated(content: bytes) -> None:
    """Raise too_large_decompressed for a deflated data set that is a bomb; pydicom would inflate it whole."""
    head = content[132:144]
    end = 144 + int.from_bytes(head[8:12], "little") if head[:8] == b"\2\0\0\0UL\4\0" else len(content)
    if DeflatedExplicitVRLittleEndian.encode() not in content[144:end]:
        return
    most = MAX_INFLATION * len(content)
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[end:], most + 1)
    except zlib.error:
        raise InputError("corrupt", "the deflated data set is damaged") from None
    if len(inflated) > most:
        detail = f"the deflated data set grows by more than a factor of {MAX_INFLATION}"
        raise InputError("too_large_decompressed", detail)


def _is_short(dataset: Dataset) -> bool:
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return False
    bits = dataset.get("BitsAllocated", 0) * dataset.get("SamplesPerPixel", 1) * int(dataset.get("NumberOfFrames") or 1)
    sampled = 2 / 3 if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" else 1
    return len(dataset.PixelData) < int(dataset.get("Rows", 0) * dataset.get("Columns", 0) * bits * sampled) // 8


def _deidentify(dataset: FileDataset, profile: Profile) -> Cleaned:
    burned = _burned_in(dataset)
    if burned and not profile.allow_burned_in:
        raise InputError("burned_in", f"{burned}, so its pixels may show a name", "look at it, then --allow-burned-in")
    notes = ["burned_in"] * bool(burned) + ["face_visible"] * _shows_face(dataset)
    # A Siemens mosaic says in private attributes alone how many slices it holds and where they are.
    notes += ["private_geometry"] * ("MOSAIC" in str(dataset.get("ImageType")).upper())
    patient = patient_of(dataset)
    days = shift_days(patient, profile.key) if profile.dates == "shift" else None
    job = Cleaning(profile.key, pseudonym(patient, profile.key), days)
    study, series = (str(dataset.get(f"{level}InstanceUID") or "") for level in ("Study", "Series"))
    folders = job.patient, pseudonym(study, profile.key, "study"), pseudonym(series, profile.key, "series")
    pixels = _pixels(dataset)
    clean(dataset, job)
    notes += ["text_emptied"] * bool(empty_leaks(dataset, job, _is_own))
    _mark(dataset, job)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return Cleaned(stream.getvalue(), ".dcm", partial(_verify, job.canaries, pixels), tuple(notes), folders)


def patient_of(dataset: Dataset) -> str:
    """What all files of a patient share: PatientID, or else the study's UID, or else the file's own."""
    values = (str(dataset.get(name) or "").strip() for name in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"))
    return next(value for value in values if value)


def _burned_in(dataset: Dataset) -> str:
    """Why the pixels may show text about the patient; nothing where there is no reason to think so."""
    if not any(name in dataset for name in PIXELS):
        return ""
    if dataset.get("BurnedInAnnotation") == "YES":
        return "BurnedInAnnotation is YES"
    modality = str(dataset.get("Modality") or "")
    if modality in BURNED_IN_MODALITIES:
        return f"the modality {modality} draws text into images"
    if str(dataset.SOPClassUID).startswith(SECONDARY_CAPTURE):
        return "it is a secondary capture"
    if dataset.get("ConversionType") in SCREEN_CONVERSIONS:
        return "it was digitised from film, paper, video or a screen"
    return "it is a picture of a screen" if "SCREEN" in str(dataset.get("ImageType")).upper() else ""


def _shows_face(dataset: Dataset) -> bool:
    keywords = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
    words = " ".join(str(dataset.get(keyword) or "") for keyword in keywords).upper()
    known = dataset.get("RecognizableVisualFeatures") == "YES"
    return known or (dataset.get("Modality") in FACE_MODALITIES and HEAD.search(words) is not None)


def _pixels(dataset: Dataset) -> tuple[Any, ...]:
    return tuple(dataset[name].value for name in PIXELS if name in dataset)


def _mark(dataset: FileDataset, job: Cleaning) -> None:
    """Write who this is now, and what was done (PS3.15 E.1, PS3.3 C.12.1.1.1 and C.7.1.1)."""
    dataset.PatientID = dataset.PatientName = job.patient
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    dataset.LongitudinalTemporalInformationModified = "REMOVED" if job.days is None else "MODIFIED"
    codes = (BASIC_PROFILE,) if job.days is None else (BASIC_PROFILE, SHIFTED_DATES)
    dataset.DeidentificationMethodCodeSequence = Sequence(_code(value, meaning) for value, meaning in codes)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    dataset.preamble = bytes(128)


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _is_own(element: DataElement) -> bool:
    return element.keyword in OWN or (element.VR == "UI" and str(element.value).startswith("1.2.840.10008."))


def _verify(canaries: Canaries, pixels: tuple[Any, ...], content: bytes) -> str:
    """What is wrong with a written file; the attribute is named, its value is not."""
    return str(_guarded(_find_fault, canaries, pixels, content))


def _find_fault(canaries: Canaries, pixels: tuple[Any, ...], content: bytes) -> str:
    dataset = dcmread(BytesIO(content))
    if any(content[:128]) or dataset.file_meta.MediaStorageSOPInstanceUID != dataset.SOPInstanceUID:
        return "the preamble or the file's own UID is not what was written"
    if any(element.tag.is_private for element in dataset.iterall()):
        return "a private attribute is left"
    found = leaking(dataset, canaries, _is_own) + leaking(dataset.file_meta, canaries, _is_own)
    if found:
        return f"what was removed is still said by {', '.join(sorted({element.keyword for element in found}))}"
    if _pixels(dataset) != pixels:
        return "the pixels are not those of the source"
    frames = [value for value in pixels if isinstance(value, bytes)]
    return "the pixel data hold text that was removed" if any(map(canaries.in_bytes, frames)) else ""
