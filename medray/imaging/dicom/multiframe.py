"""One DICOM header to the planes that its file holds: a single slice, an enhanced multi-frame, a cine or a mosaic.

Sources: DICOM PS3.3 C.7.6.16 (functional groups), C.7.6.17 (dimensions); mosaics, which Siemens keeps private:
nibabel.org/dicom/dicom_mosaic and nibabel.nicom.dicomwrappers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medray.imaging.dicom.elements import functional_group, integer
from medray.imaging.dicom.slices import Plane
from medray.imaging.limits import Limits
from medray.types import InputError

NUMBERS = (
    *("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber", "EchoNumbers", "EchoTime"),
    *("DiffusionBValue", "TriggerTime", "SliceThickness"),
)
SETUP = ("Modality", "FrameOfReferenceUID", "ConvolutionKernel")
MOMENTS = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}
"""Times of day, and the date that tells the one after midnight."""
FRAME_LABELS = (
    ("TemporalPositionIndex", "FrameContentSequence", "TemporalPositionIndex"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime"),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
)
"""Label of a frame, and the functional group and attribute that it is read from."""
PLACES = frozenset({0x00200032, 0x00209056, 0x00209057, 0x00209301, 0x00209113})
"""Dimensions that say where a frame is (position, stack, number in the stack), not when or how it was taken."""
MAX_FRAMES = 100_000
ORDINAL = re.compile(r".*_\d+")
"""A value of ImageType that counts (ECHO_01) and so is no kind of image."""
SIEMENS_TILES = (0x0019, 0x100A)


def planes(data: Dataset, file: int, limits: Limits) -> tuple[Plane, ...]:
    """The planes in the file number `file`, by its header; none where it holds no image.

    A plane without position is a 2D image. Raises bad_header, too_many_pixels, missing_geometry and corrupt
    (a mosaic without its private header, or with one that cannot be).
    """
    if "Rows" not in data or "Columns" not in data:
        return ()
    size = integer(data, "Rows"), integer(data, "Columns")
    count = integer(data, "NumberOfFrames", 1)
    if count < 1:
        raise InputError("bad_header", f"NumberOfFrames is {count}")
    limits.check_grid(size, 1)
    if math.prod(size) * count > limits.max_voxels or count > MAX_FRAMES:
        grid = f"{count} frames of {size[0]} x {size[1]}"
        raise InputError(
            "too_many_pixels", f"{grid} exceed the limits of {limits.max_voxels} pixels, {MAX_FRAMES} frames"
        )
    groups = data.get("PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != count:
        raise InputError("bad_header", f"NumberOfFrames is {count}, but {len(groups)} frames are described")
    if groups or "SharedFunctionalGroupsSequence" in data:
        return tuple(_frames(data, file, size, count))
    if count > 1:
        return tuple(Plane(file, size, frame) for frame in range(count))
    plane = Plane(
        file,
        size,
        spacing=numbers(data, "PixelSpacing"),
        orientation=numbers(data, "ImageOrientationPatient"),
        position=numbers(data, "ImagePositionPatient"),
        labels=_labels(data),
        kind=tuple(value for value in _texts(data, "ImageType") if not ORDINAL.fullmatch(value)),
        setup=tuple(value for keyword in SETUP for value in (*_texts(data, keyword), "")),
    )
    return tuple(_tiles(data, plane)) if "MOSAIC" in _texts(data, "ImageType") else (plane,)


def numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """The numbers in an element; empty where it is missing or empty. Raises ValueError for what is no number."""
    value = data.get(keyword)
    return () if value in (None, "") else tuple(float(number) for number in np.atleast_1d(value))


def _labels(data: Dataset) -> dict[str, Hashable]:
    several = {keyword: numbers(data, keyword) for keyword in NUMBERS}
    labels: dict[str, Hashable] = {keyword: values[0] for keyword, values in several.items() if len(values) == 1}
    for keyword, date in MOMENTS.items():
        if _texts(data, keyword):
            labels[keyword] = (_texts(data, date), _texts(data, keyword))
    if "DiffusionBValue" in labels:
        labels["DiffusionDirection"] = (labels["DiffusionBValue"], numbers(data, "DiffusionGradientOrientation"))
    return labels


def _texts(data: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as text; empty where it is missing."""
    value = data.get(keyword)
    if value is None or value == "":
        return ()
    return (str(value),) if isinstance(value, (str, bytes, float, int)) else tuple(map(str, value))


def _frames(data: Dataset, file: int, size: tuple[int, int], count: int) -> Iterator[Plane]:
    """The frames of an enhanced image; what a frame does not say, the shared groups say for all."""
    of_file = _labels(data)
    pointers = [int(item.DimensionIndexPointer) for item in data.get("DimensionIndexSequence") or ()]
    for frame in range(count):

        def group(keyword: str, frame: int = frame) -> Dataset:
            return functional_group(data, frame, keyword)

        labels = dict(of_file)
        for label, sequence, keyword in FRAME_LABELS:
            value = group(sequence).get(keyword)
            if value not in (None, ""):
                labels[label] = str(value) if keyword.endswith("DateTime") else float(value)
        index = numbers(group("FrameContentSequence"), "DimensionIndexValues")
        if len(index) == len(pointers):
            how = tuple(value for value, pointer in zip(index, pointers, strict=True) if pointer not in PLACES)
            labels["DimensionIndexValues"] = how
        yield Plane(
            file,
            size,
            frame,
            spacing=numbers(group("PixelMeasuresSequence"), "PixelSpacing"),
            orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient"),
            position=numbers(group("PlanePositionSequence"), "ImagePositionPatient"),
            labels=labels,
        )


def _tiles(data: Dataset, mosaic: Plane) -> Iterator[Plane]:
    """The slices that a Siemens mosaic shows side by side.

    ImagePositionPatient is where the first pixel would be if the slice in the centre were as large as the mosaic.
    """
    private = _private(data)
    tiles, normal = private["NumberOfImagesInMosaic"], private["SliceNormalVector"]
    step = numbers(data, "SpacingBetweenSlices")
    if (
        len(normal) != 3
        or len(tiles) != 1
        or not step
        or not (mosaic.spacing and mosaic.orientation and mosaic.position)
    ):
        raise InputError(
            "missing_geometry",
            "a mosaic without the number, the normal or the distance of its slices",
            "export it with the private header of Siemens, or as single slices",
        )
    count = int(tiles[0])
    edge = math.isqrt(max(count - 1, 0)) + 1
    if count < 1 or any(length % edge for length in mosaic.size):
        raise InputError("corrupt", f"{count} slices do not tile a mosaic of {mosaic.size[0]} x {mosaic.size[1]}")
    rows, columns = (length // edge for length in mosaic.size)
    row, column = np.array(mosaic.orientation[:3]), np.array(mosaic.orientation[3:])
    first = np.array(mosaic.position) + row * mosaic.spacing[1] * (mosaic.size[1] - columns) / 2
    first += column * mosaic.spacing[0] * (mosaic.size[0] - rows) / 2
    for tile in range(count):
        yield Plane(
            mosaic.file,
            (rows, columns),
            corner=(tile // edge * rows, tile % edge * columns),
            spacing=mosaic.spacing,
            orientation=mosaic.orientation,
            position=tuple((first + tile * step[0] * np.array(normal)).tolist()),
            labels=mosaic.labels,
            kind=mosaic.kind,
            setup=mosaic.setup,
        )


def _private(data: Dataset) -> dict[str, tuple[float, ...]]:
    """What the private header of Siemens says of the mosaic; empty where it does not."""
    with warnings.catch_warnings():
        # nibabel calls all of its readers of DICOM experimental as soon as one is imported.
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader
    try:
        header: Any = (csareader.get_csa_header(data, "image") or {}).get("tags", {})
        found = {
            name: tuple(float(item) for item in header.get(name, {}).get("items", ()))
            for name in ("NumberOfImagesInMosaic", "SliceNormalVector")
        }
        public = data.get(SIEMENS_TILES)
        if not found["NumberOfImagesInMosaic"] and public is not None:
            found["NumberOfImagesInMosaic"] = (float(public.value),)
    except Exception as error:
        # nibabel's parser follows every offset that the header gives; what then fails is no promise.
        raise InputError("corrupt", "the private header of the mosaic is damaged") from error
    if not all(math.isfinite(number) for values in found.values() for number in values):
        raise InputError("corrupt", "the private header of the mosaic holds a number that is not finite")
    return found
