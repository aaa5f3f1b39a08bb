"""The DICOM basic application confidentiality profile (PS3.15 annex E), on one data set.

The table of actions per attribute is dicom-anonymizer's; how they are carried out is here, since that library
cleans the top level alone, forgets its UIDs with the process, and leaves 'removed' dates and overlay text behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import Any

from dicomanonymizer.dicomfields_selector import (  # type: ignore[import-untyped]
    dicom_anonymization_database_selector as profile_tables,
)
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence

from medray.imaging.deid.canaries import TEXT_VRS, Canaries
from medray.imaging.deid.keyed import new_uid

EDITION = "dicomfields_2026c"
ACTIONS = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "K",
}
"""Actions of table E.1-1; X/Z/U* is K, keep: the references inside are renamed like all UIDs."""
TIME_VRS = frozenset({"DA", "DT", "TM"})
UNLISTED_REMOVED = frozenset({"AE", "DA", "DT", "LT", "PN", "ST", "TM", "UN", "UR", "UT"})
"""Value types of names, times, hosts and prose: removed also where the table does not know the attribute."""
WELL_KNOWN_UID = "1.2.840.10008."
KIND_UIDS = ("SOPClass", "TransferSyntax", "ContextUID", "CodingScheme", "MappingResource", "SpecificationVersion")
"""Keywords of UIDs that say what a thing is and not which one."""
REPEATING_GROUPS = (0x5000, 0x6000)
"""Curves and overlays: graphics and text drawn over the image."""
BIRTH = frozenset({"PatientBirthDate", "PatientBirthTime", "LastMenstrualDate"})
PUBLIC_DATES = frozenset(
    {
        "CalibrationDate",
        "CalibrationDateTime",
        "ContextGroupLocalVersion",
        "ContextGroupVersion",
        "DateOfInstallation",
        "DateOfLastCalibration",
        "DateOfLastDetectorCalibration",
        "DateOfManufacture",
        "DateTimeOfLastCalibration",
        "EffectiveDateTime",
        "EthicsCommitteeApprovalEffectivenessEndDate",
        "EthicsCommitteeApprovalEffectivenessStartDate",
        "HangingProtocolCreationDateTime",
        "InformationIssueDateTime",
        "ProductExpirationDateTime",
        "SourceStrengthReferenceDate",
        "TemplateLocalVersion",
        "TemplateVersion",
    }
)
"""Dates that others know too: shifted, they would give the shift away, so they are removed."""
DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), bytes(8)),
    "AS": "000Y",
    "DA": "00010101",
    "DT": "00010101000000",
    "TM": "000000",
    "UR": "http://anonymized.invalid",
}


@dataclass(frozen=True, slots=True)
class Cleaning:
    """One data set being cleaned."""

    key: bytes
    patient: str
    """Pseudonym of the patient."""
    days: int | None
    """By how many days dates move; None removes them."""
    canaries: Canaries = field(default_factory=Canaries)

    def uid(self, value: str) -> str:
        """The new UID, or the same where it is one of the standard's own."""
        return value if not value or value.startswith(WELL_KNOWN_UID) else new_uid(value, self.key)


@cache
def actions() -> dict[int, str]:
    """Action of the basic profile per tag."""
    tables = profile_tables(EDITION)
    return {tag[0] << 16 | tag[1]: action for name, action in ACTIONS.items() for tag in tables[name] if len(tag) == 2}


def clean(dataset: Dataset, job: Cleaning, replaced: bool = False) -> None:
    """Carry out the profile on every attribute at every depth.

    Args:
        dataset: changed in place.
        job: what to put in place of what is found, and where to note it.
        replaced: inside a sequence that is to be replaced as a whole: every text goes.
    """
    for tag in list(dataset.keys()):
        if tag.is_private or tag.group & 0xFF00 in REPEATING_GROUPS or not dictionary_has_tag(tag):
            _remember_all(dataset[tag], job.canaries, private=tag.is_private)
            del dataset[tag]
            continue
        element = dataset[tag]
        action = actions().get(int(tag)) or ("X" if element.VR in UNLISTED_REMOVED else "K")
        _carry_out(dataset, element, "D" if replaced and element.VR in TEXT_VRS else action, job, replaced)


def _carry_out(dataset: Dataset, element: DataElement, action: str, job: Cleaning, replaced: bool) -> None:
    keyword = element.keyword
    if element.VR == "SQ":
        _clean_sequence(dataset, element, action, job, replaced)
    elif element.VR == "UI":
        # A kind of thing is no identity; a UID that the table does not know is taken for one.
        if not any(word in keyword for word in KIND_UIDS):
            _rename(element, job)
    elif element.VR in TIME_VRS and job.days is not None and keyword not in BIRTH | PUBLIC_DATES:
        _shift(element, job)
    elif action != "K":
        job.canaries.add(element.VR, keyword, element.value)
        # Of the ways that the table leaves open, text takes the one that is legal everywhere, time the emptiest.
        if "D" in action and (element.VR not in TIME_VRS or action == "D"):
            element.value = DUMMIES[element.VR]
        elif "Z" in action:
            element.value = None if element.VR != "PN" else ""
        else:
            del dataset[element.tag]
    if keyword == "PatientID" and element.tag in dataset:
        element.value = job.patient


def _clean_sequence(dataset: Dataset, element: DataElement, action: str, job: Cleaning, replaced: bool) -> None:
    if action in ("K", "D"):
        for item in element.value:
            clean(item, job, replaced or action == "D")
        return
    _remember_all(element, job.canaries)
    if "Z" in action:
        element.value = Sequence()
    else:
        del dataset[element.tag]


def _remember_all(element: DataElement, canaries: Canaries, private: bool = False) -> None:
    if element.VR == "SQ":
        for item in element.value:
            for inner in item:
                _remember_all(inner, canaries, private or inner.tag.is_private)
    # Codes and kinds say what a thing is; a private creator names a maker, which other attributes may do too.
    elif not element.keyword.startswith(("Code", "Coding")) and not element.tag.is_private_creator:
        canaries.add(element.VR, "" if private else element.keyword, element.value)


def _rename(element: DataElement, job: Cleaning) -> None:
    old = element.value
    several = not isinstance(old, str)
    new = [job.uid(str(value)) for value in (old if several else [old])]
    job.canaries.uids.update(str(value) for value in (old if several else [old]) if str(value) not in new)
    element.value = new if several else new[0]


def _shift(element: DataElement, job: Cleaning) -> None:
    """Move dates by whole days; times of day stay, and so does the order of everything."""
    if element.VR == "TM" or element.is_empty:
        return
    job.canaries.add(element.VR, element.keyword, element.value)
    old = element.value
    several = not isinstance(old, str)
    new = [_moved(str(value), job.days or 0) for value in (old if several else [old])]
    element.value = new if several else new[0]


def _moved(text: str, days: int) -> str:
    """A DA or DT by some days earlier; empty where it names no day."""
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
        return (day + timedelta(days)).strftime("%Y%m%d").rjust(8, "0") + text[8:]
    except (ValueError, OverflowError):
        return ""


def empty_leaks(dataset: Dataset, job: Cleaning, passed: Callable[[DataElement], bool]) -> int:
    """Empty what the profile keeps but repeats what it removed elsewhere; how many attributes that were."""
    found = leaking(dataset, job.canaries, passed)
    for element in found:
        element.value = "" if element.VR in TEXT_VRS else None
    return len(found)


def leaking(dataset: Dataset, canaries: Canaries, passed: Callable[[DataElement], bool]) -> list[DataElement]:
    """The attributes, at every depth, that say what was removed, but for those that `passed` knows."""
    found = []
    for element in dataset:
        if passed(element):
            continue
        if element.VR == "SQ":
            found += [inner for item in element.value for inner in leaking(item, canaries, passed)]
        elif element.VR[0] != "O":
            # The words of a code are the field's; only a name or a number among them is a leak.
            vr = "CS" if element.keyword.startswith("Cod") else element.VR
            found += [element] * canaries.leaks(vr, element.value)
    return found
