"""DICOM phantoms for trees of series: small, but with the headers that tell series, studies and patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset as Tags
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"


def tags(kind: str, modality: str, series: str, patient: str, study: str = "1.1") -> Tags:
    """The identity of one object."""
    data = Tags()
    data.SOPClassUID, data.Modality = kind, modality
    data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = patient, study, series
    return data


def save(data: Tags, file: Path, number: int = 0) -> Path:
    data.SOPInstanceUID = f"{data.SeriesInstanceUID}.{number}"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)
    return file


def series(
    folder: Path, uid: str, patient: str = "p", study: str = "1.1", slices: int = 2, times: int = 1, **more: object
) -> Path:
    """One image series, its files without an ending."""
    for number in range(slices * times):
        data = tags(CT, "CT", uid, patient, study)
        data.Rows = data.Columns = 2
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelSpacing, data.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, float(number % slices)]
        data.InstanceNumber = number + 1
        data.AcquisitionNumber = data.TemporalPositionIdentifier = number // slices + 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.arange(4, dtype="<u2").tobytes()
        for name, value in more.items():
            setattr(data, name, value)
        save(data, folder / f"IM{number:04d}", number)
    return folder


def label_map(file: Path, of: str, uid: str, modality: str = "SEG", patient: str = "p") -> Path:
    """An object that says which series it belongs to, and no more."""
    data = tags(SEG if modality == "SEG" else RTSTRUCT, modality, uid, patient)
    reference = Tags()
    reference.SeriesInstanceUID = of
    if modality == "SEG":
        data.ReferencedSeriesSequence = [reference]
    else:
        study, frame = Tags(), Tags()
        study.RTReferencedSeriesSequence = [reference]
        frame.RTReferencedStudySequence = [study]
        data.ReferencedFrameOfReferenceSequence = [frame]
    return save(data, file)
