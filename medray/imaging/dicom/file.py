"""One DICOM file, strictly: its data set, and its frames as values of the modality.

Sources: DICOM PS3.3 C.11.1 (modality LUT), C.7.6.16.2.9 (pixel value transformation), C.7.6.3 (image pixel).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset

from medray.imaging.dicom.elements import (
    attributes,
    check_numbers,
    functional_group,
    implausible,
    modality,
    names_patient,
    spacing_mm,
    text,
)
from medray.imaging.dicom.pixels import Layout, check_size, is_padded, layout, stored_frames
from medray.imaging.dicom.stream import Parts, split
from medray.imaging.limits import Limits, check_values
from medray.types import Array, Case, InputError

QUANTITIES = ("CT", "PT")
"""Modalities whose values have a unit (HU, Bq/ml), and so need a rescale and are never inverted."""


def parse(content: bytes, limits: Limits) -> Dataset:
    """The data set in the bytes of one DICOM file, checked for what pydicom lets pass; pixels are not decoded.

    Every element is there to its last byte, and spacings, positions and rescales in it are finite numbers. Raises
    InputError: empty_file, too_large, unsupported_type, suspicious_preamble, truncated, corrupt, bad_header,
    bad_rescale, too_large_decompressed.
    """
    limits.check_file(len(content))
    return _dataset(split(content, limits))


def parse_header(content: bytes, limits: Limits) -> Dataset:
    """As `parse`, of the file's first part: all that comes before the pixels, which may be missing or cut."""
    limits.check_file(len(content))
    return _dataset(split(content, limits, header_only=True))


def _dataset(parts: Parts) -> Dataset:
    # A damaged element fails in pydicom in a dozen ways; a deep nest of sequences, by RecursionError.
    with guarded("the data set cannot be parsed"):
        data = read_dataset(BytesIO(parts.header), parts.implicit, parts.little)
        data.file_meta = FileMetaDataset(read_dataset(BytesIO(parts.meta), False, True))
        check_numbers(data)
    if parts.place is not None and parts.pixels is not None:
        vr, encapsulated = parts.place.vr or "OW", parts.place.encapsulated
        data.add(DataElement(parts.place.tag, vr, parts.pixels, None, encapsulated, True))
    return data


@contextmanager
def guarded(fact: str) -> Iterator[None]:
    """Raise corrupt, with `fact`, for whatever pydicom raises within the block, and keep it from speaking.

    Its warnings and log lines quote the values of elements, and no log may hold the name of a patient.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError("corrupt", fact, "copy or export the file again") from error


def frames(data: Dataset, limits: Limits) -> Array:
    """The frames (F, row, column), or (F, row, column, 3) in colour, as values of the modality (HU in CT).

    Stored bits above BitsStored are masked, rescale slope and intercept (of each frame, where frames have their
    own) or the Modality LUT are applied, palettes and YBR become RGB, colour with equal channels becomes grey,
    and MONOCHROME1 is inverted within its stored range, so that bigger is always brighter; not in CT and PT,
    whose values have a unit and are only shown inverted. The window (VOI LUT) is for display and is not applied:
    preprocessing has its own. Integers stay integers where no slope asks for more: as stored without a rescale,
    int16 or else int32 with a whole intercept; all else is float32. So two files of a series may differ in dtype.

    Raises InputError: no_pixel_data, bad_header, missing_rescale, bad_rescale, truncated, trailing_data, corrupt,
    empty_image, too_many_pixels, too_large_decompressed, unsupported_transfer_syntax, unsupported_colour,
    unsupported_dtype.
    """
    with guarded("the pixels, or an element that describes them, are damaged"):
        form = layout(data)
        check_size(form, limits)
        return _one_if_grey(_values(data, form))


def _values(data: Dataset, form: Layout) -> Array:
    # Asked for before a frame is decoded: a refusal should not wait for pixels.
    rescale, lut = _rescale(data, form, 0), _modality_lut(data, form)
    invert = form.photometric == "MONOCHROME1" and modality(data) not in QUANTITIES
    values = np.empty(0)
    for index, stored in enumerate(stored_frames(data, form)):
        frame = _inverted(stored, form) if invert else stored
        frame = frame if lut is None else _mapped(frame, *lut)
        rescale = _rescale(data, form, index) if index else rescale
        frame = frame if rescale is None else _rescaled(frame, *rescale)
        kind = frame.dtype if index == 0 else np.promote_types(frame.dtype, values.dtype)
        kind = np.dtype(np.float32) if kind == np.float64 else kind
        if index == 0:
            values = np.empty((form.frames, *frame.shape), kind)
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(kind, copy=False)
            values[index] = frame
    return values


def _inverted(frame: Array, form: Layout) -> Array:
    """The stored range turned over: its lowest value for its highest."""
    # In two's complement ~value is low + high - value, which fits where the value did.
    top = np.asarray((1 << form.stored) - 1).astype(frame.dtype)
    turned: Array = -frame if frame.dtype.kind == "f" else ~frame if form.signed else top - frame
    return turned


def _modality_lut(data: Dataset, form: Layout) -> tuple[int, Array] | None:
    """The first stored value that the Modality LUT maps, and the values that it and those after it become."""
    items = data.get("ModalityLUTSequence")
    if not items or form.samples == 3:
        return None
    count, first, bits = (int(number) for number in items[0].LUTDescriptor)
    count, first = count or 65536, first - 65536 if form.signed and first > 32767 else first
    entries = items[0].LUTData
    if isinstance(entries, bytes):
        order = ">" if items[0].original_encoding[1] is False else "<"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * count else f"{order}u2")
    # A byte pads an odd number of entries of 8 bits.
    if not count <= len(entries) <= count + 1 or not 8 <= bits <= 16:
        raise InputError("bad_header", f"the Modality LUT has {len(entries)} entries, {count} are announced")
    return first, np.asarray(entries[:count], np.uint16)


def _mapped(frame: Array, first: int, table: Array) -> Array:
    # Values before the first and after the last entry take that entry (PS3.3 C.11.1.1).
    return np.asarray(table[np.clip(frame.astype(np.int64) - first, 0, len(table) - 1)])


def _rescale(data: Dataset, form: Layout, frame: int) -> tuple[float, float] | None:
    """Slope and intercept of a frame; None where its values are as stored."""
    if form.samples == 3 or "ModalityLUTSequence" in data:
        return None
    holder = functional_group(data, frame, "PixelValueTransformationSequence")
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    if slope in (None, "") or intercept in (None, ""):
        if modality(data) in QUANTITIES:
            raise InputError(
                "missing_rescale",
                f"RescaleSlope or RescaleIntercept is missing, without which values of {modality(data)} have no unit",
                "export the original image again",
            )
        if slope not in (None, "", 1) or intercept not in (None, "", 0):
            raise InputError("bad_rescale", "one of RescaleSlope and RescaleIntercept is there without the other")
        return None
    if float(slope) == 0:
        raise InputError("bad_rescale", "RescaleSlope is 0, which makes all pixels equal")
    return None if (slope, intercept) == (1, 0) else (float(slope), float(intercept))


def _rescaled(frame: Array, slope: float, intercept: float) -> Array:
    if slope == 1 and intercept.is_integer() and frame.dtype.kind in "iu":
        low, high = int(frame.min()) + int(intercept), int(frame.max()) + int(intercept)
        for kind in (np.int16, np.int32):
            limits = np.iinfo(kind)
            if limits.min <= low and high <= limits.max:
                # Two's complement wraps: that the sums fit is enough, the terms need not.
                shifted: Array = frame.astype(kind) + np.asarray(int(intercept)).astype(kind)
                return shifted
    return np.add(frame.astype(np.float64) * slope, intercept)


def _one_if_grey(values: Array) -> Array:
    """(F, row, column) where red, green and blue are equal everywhere, else the same array."""
    if values.ndim == 3:
        return values
    red = values[..., 0]
    equal = all(np.array_equal(red, values[..., channel]) for channel in (1, 2))
    return np.ascontiguousarray(red) if equal else values


def image_warnings(data: Dataset) -> tuple[str, ...]:
    """What a person should know of the file: phi_in_header (see `names_patient`), padded_pixels (zeros behind them)."""
    with guarded("an element of text is damaged"):
        personal, padded = names_patient(data), is_padded(data)
    return ("phi_in_header",) * personal + ("padded_pixels",) * padded


def intensity_warnings(data: Dataset, values: Array) -> tuple[str, ...]:
    """implausible_intensity, where the `values` that `frames` gave cannot be right (see `implausible`)."""
    return ("implausible_intensity",) * implausible(data, values)


def read(content: bytes, case_id: str, limits: Limits) -> Case:
    """The 2D image of a DICOM file with one frame: image (C, row, column) as `frames` gives it.

    The affine holds the spacing of rows and of columns in mm where the file tells it, else it is the identity
    in 'px'. subject_id is the PatientID; attributes are sex, age_band (decades) and scanner. Raises what `parse`
    and `frames` raise, and multi_frame, missing_geometry (CT, MR, PT), non_finite_voxels. Warns: constant_image,
    implausible_intensity, phi_in_header, padded_pixels.
    """
    data = parse(content, limits)
    pixels = frames(data, limits)
    if len(pixels) != 1:
        raise InputError("multi_frame", f"the file holds {len(pixels)} frames", "read it as a series")
    image = np.ascontiguousarray(np.moveaxis(pixels[0], -1, 0)) if pixels.ndim == 4 else pixels
    with guarded("an element that describes the image is damaged"):
        spacing = spacing_mm(data)
        row, column = spacing or (1.0, 1.0)
        return Case(
            case_id=case_id,
            image=image,
            affine=np.diag([row, column, 1.0, 1.0]),
            unit="mm" if spacing else "px",
            modality=modality(data),
            subject_id=text(data, "PatientID"),
            attributes=attributes(data),
            # Once each: two rules may see the same fault.
            warnings=tuple(dict.fromkeys(check_values(image) + intensity_warnings(data, image) + image_warnings(data))),
        )
