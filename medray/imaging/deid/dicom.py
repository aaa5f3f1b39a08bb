"""De-identification of a DICOM file: what is refused, what is cleaned, how it is marked, and the look at the result."""

from __future__ import annotations

import re
import zlib
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from medray.imaging.deid.canaries import Canaries, texts
from medray.imaging.deid.keyed import pseudonym, shift_days
from medray.imaging.deid.profile import Cleaning, clean, empty_leaks, leaking
from medray.imaging.deid.types import Cleaned, Profile
from medray.imaging.dicom.elements import integer
from medray.imaging.dicom.file import guarded, parse
from medray.imaging.dicom.pixels import NATIVE
from medray.imaging.dicom.stream import BIG_ENDIAN, DEFLATED, META_START, split
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
DAMAGED = "an attribute or its encoding is damaged"
PREAMBLE_BYTES = META_START - 4
OWN = frozenset(
    {"DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientIdentityRemoved", "PatientID"}
    | {"PatientName", "LongitudinalTemporalInformationModified", "ImplementationVersionName"}
)
"""Attributes that medray itself writes: they are no place for a patient's words."""


def deidentify(content: bytes, profile: Profile, limits: Limits) -> Cleaned:
    """The file under the basic profile, in its own transfer syntax, without what follows the pixels.

    Stored values stay as they are; of native pixels the bits above BitsStored, where overlays hide, are cleared.
    Raises InputError: burned_in, and what `parse` of a DICOM file raises, but for suspicious_preamble.
    Warns: face_visible, burned_in (where it was allowed), text_emptied (a kept attribute repeated what was removed),
    private_geometry (a mosaic, which cannot be read as a volume without the private attributes that are gone).
    """
    with guarded(DAMAGED):
        return _deidentify(_read(content, limits), profile)


def _read(content: bytes, limits: Limits) -> Dataset:
    limits.check_file(len(content))
    # What the preamble says is not written, so it is no reason to refuse.
    content = bytes(PREAMBLE_BYTES) + content[PREAMBLE_BYTES:]
    _check_inflated(content, limits)
    dataset = parse(content, limits)
    if not dataset.get("SOPClassUID") or not dataset.get("SOPInstanceUID"):
        raise InputError("bad_header", "the file has no SOP class or instance UID", "export the file again")
    if dataset.SOPClassUID == DIRECTORY:
        raise InputError("unsupported_type", "a DICOMDIR, which lists files under their old names")
    if dataset.SOPClassUID.startswith(ENCAPSULATED):
        raise InputError("unsupported_type", "a document inside DICOM: its pages cannot be cleaned")
    if _is_short(dataset):
        raise InputError("truncated", "there are fewer pixels than the header announces", "copy the file again")
    return dataset


def _check_inflated(content: bytes, limits: Limits) -> None:
    """Raise too_large_decompressed for a deflated data set that is a bomb."""
    parts = split(content, limits, header_only=True)
    if parts.transfer_syntax != DEFLATED:
        return
    most = min(MAX_INFLATION * len(content), limits.max_decompressed_bytes)
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[META_START + len(parts.meta) :], most + 1)
    except zlib.error:
        raise InputError("corrupt", "the deflated data set is damaged") from None
    if len(inflated) > most:
        detail = f"the deflated data set grows by more than a factor of {MAX_INFLATION}, or over {most} bytes"
        raise InputError("too_large_decompressed", detail)


def _is_short(dataset: Dataset) -> bool:
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return False
    bits = dataset.get("BitsAllocated", 0) * dataset.get("SamplesPerPixel", 1) * int(dataset.get("NumberOfFrames") or 1)
    sampled = 2 / 3 if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" else 1
    return len(dataset.PixelData) < int(dataset.get("Rows", 0) * dataset.get("Columns", 0) * bits * sampled) // 8


def _deidentify(dataset: Dataset, profile: Profile) -> Cleaned:
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
    _clear_unused_bits(dataset)
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
    if "YES" in _codes(dataset, "BurnedInAnnotation"):
        return "BurnedInAnnotation is YES"
    if drawing := _codes(dataset, "Modality") & BURNED_IN_MODALITIES:
        return f"the modality {min(drawing)} draws text into images"
    if str(dataset.SOPClassUID).startswith(SECONDARY_CAPTURE):
        return "it is a secondary capture"
    if _codes(dataset, "ConversionType") & SCREEN_CONVERSIONS:
        return "it was digitised from film, paper, video or a screen"
    if str(dataset.file_meta.TransferSyntaxUID) not in NATIVE and _has_overlay_bits(dataset):
        return "an overlay is drawn into the unused bits of its compressed pixels"
    return "it is a picture of a screen" if "SCREEN" in str(dataset.get("ImageType")).upper() else ""


def _codes(dataset: Dataset, keyword: str) -> set[str]:
    """The values of a code string, as the standard would have them spelt."""
    return {text.strip().upper() for text in texts(dataset.get(keyword))}


def _has_overlay_bits(dataset: Dataset) -> bool:
    """Whether an overlay says that it lies in bits of the pixels (OverlayBitPosition, retired)."""
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
    return any(position is not None and position.value for position in positions)


def _shows_face(dataset: Dataset) -> bool:
    keywords = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
    words = " ".join(str(dataset.get(keyword) or "") for keyword in keywords).upper()
    known = "YES" in _codes(dataset, "RecognizableVisualFeatures")
    return known or (bool(_codes(dataset, "Modality") & FACE_MODALITIES) and HEAD.search(words) is not None)


def _clear_unused_bits(dataset: Dataset) -> None:
    """Set the bits above BitsStored of native pixels to 0, or to the sign where values have one.

    Raises bad_header where the stored bits are not the lowest ones, or no whole bytes are allocated.
    """
    if "PixelData" not in dataset or str(dataset.file_meta.TransferSyntaxUID) not in NATIVE:
        return
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    high = integer(dataset, "HighBit", stored - 1)
    if not 1 <= stored <= allocated or high != stored - 1 or allocated not in (1, 8, 16, 32, 64):
        detail = f"BitsAllocated {allocated}, BitsStored {stored} and HighBit {high} do not fit each other"
        raise InputError("bad_header", detail)
    unused = allocated - stored
    if not unused:
        return
    order = ">" if str(dataset.file_meta.TransferSyntaxUID) == BIG_ENDIAN else "<"
    kind = np.dtype(f"{order}{'i' if integer(dataset, 'PixelRepresentation', 0) else 'u'}{allocated // 8}")
    value = dataset.PixelData
    size = len(value) // kind.itemsize * kind.itemsize
    words = np.frombuffer(value[:size], kind)
    # Up and down again: on its way down a signed value repeats its sign, as its writer did.
    cleared = ((words << unused) >> unused).astype(kind)
    if not np.array_equal(words, cleared):
        dataset.PixelData = cleared.tobytes() + value[size:]


def _pixels(dataset: Dataset) -> tuple[Any, ...]:
    return tuple(dataset[name].value for name in PIXELS if name in dataset)


def _mark(dataset: Dataset, job: Cleaning) -> None:
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
    with guarded(DAMAGED):
        return _find_fault(canaries, pixels, content)


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
