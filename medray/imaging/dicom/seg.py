"""DICOM Segmentation objects: their frames, set on the grid of the image that they segment.

Source: DICOM PS3.3 C.8.20 (Segmentation), C.7.6.16 (functional groups), PS3.5 8.1.1 (packed bits, lowest first).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medray.imaging.dicom import pixels as dicom_pixels
from medray.imaging.dicom.elements import LPS_TO_RAS, functional_group
from medray.imaging.dicom.pixels import Layout
from medray.imaging.limits import TOLERANCE_VOXELS, Limits
from medray.types import Array, Case, InputError

MAX_SEGMENTS = 65535


def read(data: Dataset, image: Case, limits: Limits) -> tuple[Array, tuple[str, ...], Mapping[int, str]]:
    """The label map (1, *S) on the grid of `image` of a BINARY, FRACTIONAL or LABELMAP segmentation.

    Returns it (uint8 or uint16, segment number = value, 0 where no segment is), warnings and the names of the
    segments by value. A fraction counts from half of the maximum up, with a warning fractional_segmentation.
    Frames may be turned or smaller than the image's slices, and slices may have none. A 2D image, whose place is
    not known, takes frames of its own shape. Raises InputError: affine_mismatch (a frame is not on voxels of the
    image), shape_mismatch, overlapping_segments, missing_affine, bad_header; what `dicom_pixels` raises;
    and what pydicom does for a tag that is absent or cannot be understood.
    """
    kind, names = str(data.SegmentationType), _names(data)
    form = dicom_pixels.layout(data)
    # Frames of bits are never unpacked together: the size of their file limits them.
    limits.check_grid((form.rows, form.columns), 1)
    if kind != "BINARY":
        dicom_pixels.check_size(form, limits)
    if len(data.PerFrameFunctionalGroupsSequence) != form.frames:
        raise InputError("bad_header", f"{form.frames} frames are announced, and another number is described")
    if image.spatial_dims == 3 and image.unit == "px":
        raise InputError("missing_affine", "the image does not say where its voxels are, the segmentation does")
    label = np.zeros((1, *image.image.shape[1:]), np.uint8 if max(names) < 256 else np.uint16)
    for index, frame in enumerate(_frames(data, kind, form)):
        if kind == "LABELMAP":
            if unknown := set(np.unique(frame).tolist()) - {0, *names}:
                raise InputError("bad_header", f"voxels belong to segment {min(unknown)}, which is not described")
            values = frame.astype(label.dtype)
        else:
            number = int(functional_group(data, index, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if number not in names:
                raise InputError("bad_header", f"a frame belongs to segment {number}, which is not described")
            values = frame * label.dtype.type(number)
        _put(_target(label, data, index, form, image), values)
    return label, ("fractional_segmentation",) if kind == "FRACTIONAL" else (), names


def _names(data: Dataset) -> dict[int, str]:
    """Segment number -> label, without the background that a LABELMAP may describe."""
    segments = [(int(segment.SegmentNumber), str(segment.SegmentLabel)) for segment in data.SegmentSequence]
    background = data.get("PixelPaddingValue", 0)
    if background != 0:
        raise InputError("bad_header", f"the background of the segmentation is {background}, not 0")
    names = {number: label for number, label in segments if number != 0}
    if not names or len(names) < sum(number != 0 for number, _ in segments) or max(names) > MAX_SEGMENTS:
        raise InputError("bad_header", f"the numbers of the segments are {[number for number, _ in segments][:8]}")
    return names


def _frames(data: Dataset, kind: str, form: Layout) -> Iterator[Array]:
    """The frames (row, column): bool, or segment numbers where the kind is LABELMAP."""
    if kind == "BINARY":
        return _bits(data, form)
    if kind not in ("FRACTIONAL", "LABELMAP"):
        raise InputError("bad_header", "the segmentation is not BINARY, FRACTIONAL or LABELMAP")
    # A palette only says how to draw the numbers.
    stored = dicom_pixels.stored_frames(data, replace(form, photometric="MONOCHROME2"))
    if kind == "LABELMAP":
        return stored
    most = int(data.MaximumFractionalValue)
    if most < 1:
        raise InputError("bad_header", f"MaximumFractionalValue is {most}")
    return (frame >= most / 2 for frame in stored)


def _bits(data: Dataset, form: Layout) -> Iterator[Array]:
    """One frame unpacked at a time: frames follow each other without a gap, so one may start within a byte."""
    if form.allocated != 1:
        raise InputError("unsupported_dtype", f"a BINARY segmentation has {form.allocated} bits per pixel, not 1")
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed or not syntax.is_little_endian:
        raise InputError("unsupported_transfer_syntax", "the packed bits of the segmentation are compressed or swapped")
    packed, expected = np.frombuffer(data.PixelData, np.uint8), form.native_bytes
    if len(packed) < expected:
        raise InputError("truncated", f"{len(packed)} of {expected} bytes of pixels are there")
    if len(packed) > expected + expected % 2:
        raise InputError("trailing_data", f"{len(packed)} bytes of pixels are there, {expected} are announced")
    for start in range(0, form.frames * form.pixels, form.pixels):
        part = np.unpackbits(packed[start // 8 : (start + form.pixels + 7) // 8], bitorder="little")
        yield part[start % 8 : start % 8 + form.pixels].reshape(form.rows, form.columns).view(np.bool_)


def _target(label: Array, data: Dataset, index: int, form: Layout, image: Case) -> Array:
    """The view (row, column) of `label` (1, *S) that frame `index` lies on."""
    shape = form.rows, form.columns
    if image.spatial_dims == 3:
        return _window(label[0], shape, _frame_affine(data, index), image.affine)
    if shape != label.shape[1:]:
        raise InputError("shape_mismatch", f"a frame is {shape}, its image {label.shape[1:]}")
    if _position(data, index) != _position(data, 0):
        raise InputError("affine_mismatch", "the frames lie at several positions, the image at one")
    return np.asarray(label[0])


def _position(data: Dataset, index: int) -> tuple[float, ...]:
    """Where a frame lies; empty where the file does not say, as for pictures."""
    group = functional_group(data, index, "PlanePositionSequence")
    return tuple(float(value) for value in group.get("ImagePositionPatient", None) or ())


def _put(target: Array, values: Array) -> None:
    """Write `values`, 0 being nothing, where `target` has none yet."""
    inside = values != 0
    if both := int(np.count_nonzero(target[inside])):
        hint = "a label map holds one class per voxel: export the segments so that they do not overlap"
        raise InputError("overlapping_segments", f"{both} voxels of a frame belong to two segments or frames", hint)
    target[inside] = values[inside]


def _frame_affine(data: Dataset, index: int) -> Array:
    """(3, 3): the columns are one step along rows, one along columns, and the first pixel, in RAS+ mm."""
    plane = functional_group(data, index, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = functional_group(data, index, "PixelMeasuresSequence").PixelSpacing
    first = _numbers(functional_group(data, index, "PlanePositionSequence").ImagePositionPatient, 3)
    # The row index runs along the second vector, in steps of the first number (C.7.6.2.1.1, 10.7.1.3).
    along_columns, along_rows = _numbers(plane, 6).reshape(2, 3)
    row_mm, column_mm = _numbers(spacing, 2)
    steps_and_first = np.column_stack([along_rows * row_mm, along_columns * column_mm, first])
    return np.asarray(steps_and_first * LPS_TO_RAS[:, None])


def _numbers(values: Any, count: int) -> Array:
    numbers = np.array([float(value) for value in values])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError("bad_header", f"a position or orientation of a frame is not {count} finite numbers")
    return numbers


def _window(label: Array, shape: tuple[int, ...], frame: Array, affine: Array) -> Array:
    """The view (row, column) of `label` (*S) that a frame of `shape` lies on."""
    inverse = np.linalg.inv(affine[:3, :3])
    steps = inverse @ frame[:, :2]
    first = inverse @ (frame[:, 2] - affine[:3, 3])
    ends = np.array([(row, column, 1) for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)]).T
    corners = np.column_stack([steps, first]) @ ends
    turn, start = np.rint(steps), np.rint(first)
    wanted = np.column_stack([turn, start]) @ ends
    # One step is one voxel along an axis of its own; with a single row or column that axis is seen here too.
    on_axes = (abs(turn).sum(axis=0) == 1).all() and abs(turn).sum(axis=1).max() == 1
    distance = float(abs(corners - wanted).max())
    if not on_axes or distance > TOLERANCE_VOXELS:
        fact = f"{distance:.3g} voxels off" if on_axes else "of another orientation or spacing than"
        _refuse(f"a frame is {fact} the image's grid, {TOLERANCE_VOXELS:g} voxels are let pass")
    low, high = wanted.min(axis=1).astype(int), wanted.max(axis=1).astype(int)
    if low.min() < 0 or (high >= label.shape).any():
        _refuse(f"a frame covers voxels {low.tolist()} to {high.tolist()} of an image of {label.shape}")
    row_axis, column_axis = abs(turn).argmax(axis=0)
    view = label[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    view = np.moveaxis(view, (row_axis, column_axis), (1, 2))[0]
    return np.asarray(view[:: int(turn[:, 0].sum()), :: int(turn[:, 1].sum())])


def _refuse(fact: str) -> None:
    raise InputError("affine_mismatch", fact, "export the segmentation on the grid of this image")
