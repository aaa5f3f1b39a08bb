"""DICOM files of series, as bytes: what the tests of series, stacks and archives read."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
MR = "1.2.840.10008.5.1.4.1.1.4"


def item(**elements: Any) -> Dataset:
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def dataset(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """One slice (row, column) or frames (F, row, column) of int16 or uint16; None removes an element."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = elements.pop("sop_class", MR)
    meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID") or "1.2.3"
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    rows, columns = pixels.shape[-2:]
    told = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientID": "P1",
        "Modality": "MR",
        "StudyInstanceUID": "1.2.1",
        "SeriesInstanceUID": "1.2.2",
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "PixelSpacing": [0.8, 0.7],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "NumberOfFrames": len(pixels) if pixels.ndim == 3 else None,
        **elements,
    }
    for keyword, value in told.items():
        if value is not None:
            setattr(data, keyword, value)
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    return data


def content(data: FileDataset) -> bytes:
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def noise(slices: int, rows: int = 6, columns: int = 5, seed: int = 0) -> np.ndarray:
    """(slice, row, column) int16."""
    return np.random.default_rng(seed).integers(-1000, 3000, (slices, rows, columns)).astype(np.int16)


def series(
    volume: np.ndarray,
    step: Sequence[float] = (0.0, 0.0, 2.5),
    first: Sequence[float] = (-10.0, 20.0, 30.0),
    number: int = 0,
    **elements: Any,
) -> list[bytes]:
    """A file per slice of `volume` (slice, row, column), `step` mm apart; `number` keeps instances of volumes apart."""
    return [
        content(
            dataset(
                pixels,
                ImagePositionPatient=[f"{a + k * s:.6f}" for a, s in zip(first, step, strict=True)],
                SOPInstanceUID=f"1.2.4.{number}.{k}",
                **elements,
            )
        )
        for k, pixels in enumerate(volume)
    ]
