"""The pixels of the planes of a series, decoded file by file, as one Case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medray.imaging.dicom import file as dicom
from medray.imaging.dicom import slices
from medray.imaging.dicom.elements import attributes, modality, spacing_mm, text
from medray.imaging.dicom.headers import content_of
from medray.imaging.dicom.slices import Plane, Volume
from medray.imaging.limits import Limits, check_values
from medray.imaging.volume import check_affine, check_spacing
from medray.types import Array, Case

SAMPLED_SLICES = 16
BLOCK_SLICES = 32
BLOCK_ROWS = 16
"""So many rows of so many slices stay in the cache while they are transposed."""


def read_volume(volume: Volume, parts: Sequence[Path | bytes], limits: Limits) -> Case:
    """The volume (C, i, j, k) whose planes are in the files `parts`, with its affine in mm; case_id is empty.

    Each file is decoded once, slice after slice. Raises what `slices.affine`, `dicom.parse` and `dicom.frames` raise,
    and too_many_voxels, too_large_decompressed, bad_affine, implausible_spacing, non_finite_voxels.
    """
    rows, columns = volume[0].size
    # float32 is what most rescaled slices become.
    limits.check_grid((columns, rows, len(volume)), 4)
    affine = slices.affine(volume)
    check_affine(affine, "series")
    check_spacing(affine)
    found: dict[str, None] = {}
    image = _stacked(_read_slices(volume, parts, limits, found), len(volume))
    data = dicom.parse_header(content_of(parts[volume[0].file], limits), limits)
    # A sample is enough to see a wrong sign, and takes little memory.
    odd = dicom.intensity_warnings(data, image[..., :: len(volume) // SAMPLED_SLICES + 1])
    return _case(data, image, affine, (*odd, *found))


def read_image(plane: Plane, planes: Sequence[Plane], parts: Sequence[Path | bytes], limits: Limits) -> Case:
    """The 2D image (C, row, column) of one of the `planes` of a series, as `dicom.read`; case_id is empty."""
    content = content_of(parts[plane.file], limits)
    if sum(other.file == plane.file for other in planes) == 1:
        return dicom.read(content, "", limits)
    data = dicom.parse(content, limits)
    pixels = _pixels(dicom.frames(data, limits), plane)
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None])
    with dicom.guarded("an element that describes the image is damaged"):
        spacing = spacing_mm(data)
    case = _case(data, image, np.diag([*(spacing or (1.0, 1.0)), 1.0, 1.0]), dicom.image_warnings(data))
    return replace(case, unit="mm" if spacing else "px")


def _read_slices(
    volume: Volume, parts: Sequence[Path | bytes], limits: Limits, found: dict[str, None]
) -> Iterator[Array]:
    """The slices in order, (row, column) or (row, column, 3); warnings are added to `found`."""
    for file, group in groupby(volume, key=lambda plane: plane.file):
        data = dicom.parse(content_of(parts[file], limits), limits)
        frames = dicom.frames(data, limits)
        found |= dict.fromkeys(dicom.image_warnings(data))
        for plane in group:
            yield _pixels(frames, plane)


def _stacked(slices: Iterator[Array], count: int) -> Array:
    """`count` slices as an image (C, i, j, k), C-contiguous, in a type that holds all of them.

    Memory is that of the image and of a block of slices: written one by one, they would take twice the time.
    """
    image, done = np.empty(0), 0
    while block := [np.atleast_3d(pixels) for pixels in islice(slices, BLOCK_SLICES)]:
        # Colour with equal channels is read as grey, so a block or the image may have to become colour again.
        (rows, columns, _), channels = block[0].shape, max(len(image), *(plane.shape[2] for plane in block))
        kind = np.result_type(*block, *[image] * bool(done))
        kind = kind if kind.kind in "iu" else np.dtype(np.float32)
        if not done:
            image = np.empty((channels, columns, rows, count), kind)
        elif (len(image), image.dtype) != (channels, kind):
            image = np.repeat(image.astype(kind), channels // len(image), axis=0)
        block = [np.broadcast_to(plane, (rows, columns, channels)) for plane in block]
        for row in range(0, rows, BLOCK_ROWS):
            piece = np.stack([plane[row : row + BLOCK_ROWS] for plane in block], axis=-1)
            image[:, :, row : row + BLOCK_ROWS, done : done + len(block)] = piece.transpose(2, 1, 0, 3)
        done += len(block)
    return image


def _case(data: Dataset, image: Array, affine: Array, warnings: tuple[str, ...]) -> Case:
    with dicom.guarded("an element that describes the image is damaged"):
        return Case(
            case_id="",
            image=image,
            affine=affine,
            unit="mm",
            modality=modality(data),
            subject_id=text(data, "PatientID"),
            attributes=attributes(data),
            warnings=tuple(dict.fromkeys((*check_values(image), *warnings))),
        )


def _pixels(frames: Array, plane: Plane) -> Array:
    """(row, column) or (row, column, 3): a frame, or a tile of it."""
    (top, left), (rows, columns) = plane.corner, plane.size
    return frames[plane.frame, top : top + rows, left : left + columns]
