"""DICOM structure sets: closed contours, filled on the slices of the image that they were drawn on.

Source: DICOM PS3.3 C.8.8.5 (structure set), C.8.8.6 (ROI contour).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from medray.imaging.dicom.elements import LPS_TO_RAS
from medray.types import Array, Case, InputError

CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
PLANE_TOLERANCE = 0.25
"""How far, in slices, a contour may be from its slice: positions are often rounded to 0.1 mm."""
EDGE_TOLERANCE = 1.0
"""How far, in voxels, a contour may leave the outermost voxel centres: outlines of the body end on the image's edge."""


class Roi(NamedTuple):
    """A region of interest: its name and its closed contours, each (P, 3) in voxels of the image."""

    name: str
    contours: list[Array]


def read(data: Dataset, image: Case, rois: Sequence[str] = ()) -> tuple[Array, tuple[str, ...], Mapping[int, str]]:
    """The label map (1, i, j, k) on the grid of `image` of the closed contours of a structure set.

    Taken are all regions with closed contours, in the order of ROINumber, or those of them whose name is one of
    `rois`; their values are 1, 2, ... A voxel belongs to a region where its centre is inside of an odd number of
    the region's contours in its slice, so that a contour within another is a hole. Returns the label map (uint8 or
    uint16), warnings and names by value. Raises InputError: no_contours, unknown_roi, overlapping_segments,
    affine_mismatch (a contour is not in a slice of the image, or out of it), missing_affine, wrong_rank (a 2D
    image), bad_header; and what pydicom does for a tag that is absent or cannot be understood. Warns: contour_gap
    (a region has slices without a contour between others; nothing is interpolated).
    """
    if image.spatial_dims != 3:
        raise InputError("wrong_rank", "contours lie in a volume, the image is 2D")
    if image.unit == "px":
        raise InputError("missing_affine", "the image does not say where its voxels are, the contours do")
    regions = _chosen(_regions(data, image.affine), rois)
    label = np.zeros((1, *image.image.shape[1:]), np.uint8 if len(regions) < 256 else np.uint16)
    axis = _slice_axis(regions)
    planes = np.moveaxis(label[0], axis, 0)
    gaps = False
    for value, region in enumerate(regions, 1):
        slices = _by_slice(region, axis, planes.shape)
        gaps |= max(slices) - min(slices) >= len(slices)
        for index, contours in slices.items():
            inside = fill(contours, planes.shape[1:])
            if both := int(np.count_nonzero(planes[index][inside])):
                hint = "a label map holds one class per voxel: choose regions that do not overlap"
                raise InputError("overlapping_segments", f"{both} voxels of a slice are in two regions", hint)
            planes[index][inside] = value
    names = {value: region.name for value, region in enumerate(regions, 1)}
    return label, ("contour_gap",) if gaps else (), names


def fill(contours: Sequence[Array], shape: Sequence[int]) -> Array:
    """Which pixels of `shape` (rows, columns) have their centre inside an odd number of `contours`.

    A contour is (P, 2), (row, column) of its corners, closed from the last to the first; the centre of pixel (r, c) is
    at (r, c). Of a centre on an edge, exactly one of the regions on the two sides has it: those that share an edge
    neither overlap nor leave a gap. Method: even-odd crossings of each row (Foley 1990, 3.6), all edges at once.
    """
    rows, columns = shape
    ends = [np.concatenate([contour, np.roll(contour, -1, axis=0)], axis=1) for contour in contours]
    edges = np.concatenate(ends)
    # From the lower row to the higher: both sides of a shared edge compute the very same crossings.
    backwards = edges[:, 0] > edges[:, 2]
    edges[backwards] = edges[backwards][:, [2, 3, 0, 1]]
    low, left, high, right = edges.T
    # An edge crosses the rows r with low <= r < high, so that a corner on a row counts once.
    first, stop = np.clip(np.ceil([low, high]), 0, rows).astype(int)
    count = stop - first
    edge = np.repeat(np.arange(len(edges)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (row - low[edge]) / (high - low)[edge]
    crossing = left[edge] + share * (right - left)[edge]
    column = np.clip(np.ceil(crossing), 0, columns).astype(int)
    # Every pixel behind a crossing changes sides.
    top, bottom, width = int(first.min()), int(stop.max()), columns + 1
    turns = np.bincount((row - top) * width + column, minlength=(bottom - top) * width).reshape(-1, width)
    inside = np.zeros((rows, columns), np.bool_)
    inside[top:bottom] = turns[:, :-1].cumsum(axis=1) % 2 == 1
    return inside


def _regions(data: Dataset, affine: Array) -> list[Roi]:
    """The regions with closed contours, in the order of ROINumber."""
    names = {int(item.ROINumber): str(item.ROIName) for item in data.StructureSetROISequence}
    found = {}
    for item in data.get("ROIContourSequence", []):
        number = int(item.ReferencedROINumber)
        if number not in names or number in found:
            raise InputError("bad_header", f"the contours of region {number} are described twice or not named")
        closed = [part for part in item.get("ContourSequence", []) if part.ContourGeometricType in CLOSED]
        found[number] = Roi(names[number], [_in_voxels(part, affine) for part in closed])
    return [found[number] for number in sorted(found) if found[number].contours]


def _in_voxels(part: Dataset, affine: Array) -> Array:
    """The points of a contour (x, y, z of patient LPS in mm, one after the other) as (P, 3) voxel coordinates."""
    value = part.get_item("ContourData").value
    # From the text of the file: pydicom makes an object of each number, which takes some times as long.
    numbers = value.decode("ascii").split("\\") if isinstance(value, bytes) else value
    points = np.array(numbers, np.float64).reshape(-1, 3)
    if len(points) == 0 or not np.isfinite(points).all():
        raise InputError("bad_header", "a contour has no point, or one that is not finite")
    # DICOM's patient coordinates point to left and posterior.
    world = points * LPS_TO_RAS - affine[:3, 3]
    return np.asarray(np.linalg.solve(affine[:3, :3], world.T).T)


def _chosen(regions: list[Roi], rois: Sequence[str]) -> list[Roi]:
    if not regions:
        raise InputError("no_contours", "the structure set has no closed contour")
    chosen = [region for region in regions if not rois or region.name in rois]
    if not chosen:
        raise InputError(
            "unknown_roi", f"none of the {len(regions)} regions has one of the {len(rois)} names asked for"
        )
    if rois and len({region.name for region in chosen}) < len(chosen):
        raise InputError("unknown_roi", "two regions have the same name", "rename one of them")
    return chosen


def _slice_axis(regions: list[Roi]) -> int:
    """The axis of the image along which the contours have no extent."""
    extents = sum(np.ptp(contour, axis=0) for region in regions for contour in region.contours)
    return int(np.argmin(extents))


def _by_slice(region: Roi, axis: int, shape: tuple[int, ...]) -> dict[int, list[Array]]:
    """Slice -> its contours (P, 2), in the two other axes."""
    slices: dict[int, list[Array]] = {}
    for contour in region.contours:
        index = round(float(contour[0, axis]))
        off = float(abs(contour[:, axis] - index).max())
        flat = np.delete(contour, axis, axis=1)
        beyond = float(np.maximum(-flat, flat - (np.array(shape[1:]) - 1)).max())
        if off > PLANE_TOLERANCE:
            _refuse(f"a contour is {off:.3g} slices from a slice of the image, {PLANE_TOLERANCE} are let pass")
        if not 0 <= index < shape[0] or beyond > EDGE_TOLERANCE:
            _refuse(f"a contour is in slice {index} of {shape[0]}, {max(beyond, 0):.3g} voxels beyond its edge")
        slices.setdefault(index, []).append(flat)
    return slices


def _refuse(fact: str) -> None:
    raise InputError("affine_mismatch", fact, "give the image that the contours were drawn on")
