"""Small pictures of cases for the report: read again, cut to planes, and let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.imaging.geometry import to_ras
from medray.pipeline.survey import Read, grey, label_of, shrink
from medray.types import Array, Box, Case, CaseRef, InputError

EDGE_PX = 160
PLANE_EDGE_PX = 108
"""The longest edge of a 2D picture, and of the largest plane of a volume."""
THINNEST_PX = 8


@dataclass(frozen=True, slots=True)
class Sitting:
    """A case whose picture is taken."""

    ref: CaseRef
    values: tuple[int, ...]
    names: tuple[str, ...]
    read: Read


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """Planes of a case, uint8 grey (h, w) or RGB (h, w, 3), with the outlines of classes counted from 1 (h, w)."""

    images: tuple[Array, ...]
    outlines: tuple[Array, ...]


def planes(sitting: Sitting) -> Planes | None:
    """The image of a case; of a volume its axial, coronal and sagittal plane, where its label is largest, else central.

    Volumes are shown upright as radiologists look at them: the patient's left, and the back, on the right. A label
    that cannot be read is not drawn; of an image that cannot be read there are no planes.
    """
    try:
        case = sitting.read(sitting.ref.source)
    except InputError:
        return None
    try:
        label = label_of(sitting.ref, case, sitting.values, sitting.names)
    except InputError:
        label = None
    if case.spatial_dims == 2:
        return _flat(case, label, sitting.ref.boxes)
    return _orthogonal(to_ras(case), to_ras(label) if label else None)


def _flat(case: Case, label: Case | None, boxes: Sequence[Box]) -> Planes:
    rows, columns = case.image.shape[1:]
    scale = EDGE_PX / max(rows, columns)
    size = (max(THINNEST_PX, round(rows * scale)), max(THINNEST_PX, round(columns * scale)))
    if len(case.image) == 3:
        image = grey(np.stack([shrink(channel, size) for channel in case.image], axis=-1))
    else:
        image = grey(shrink(case.image[0], size))
    outline = _contour(label.image[0], size) if label else np.zeros(size, np.uint8)
    for box in boxes:
        _frame(outline, box, (size[0] / rows, size[1] / columns))
    return Planes((image,), (outline,))


def _frame(outline: Array, box: Box, scale: tuple[float, float]) -> None:
    """Draw the edges of a box, which may reach out of the picture; class k in colour k + 1."""
    faces = zip(box.low, box.high, scale, outline.shape, strict=False)
    ends = [[int(np.clip((face + 0.5) * s, 0, n - 1)) for face in (low, high)] for low, high, s, n in faces]
    (top, bottom), (left, right) = ends
    colour = box.target % 254 + 1
    outline[[top, bottom], left : right + 1] = colour
    outline[top : bottom + 1, [left, right]] = colour


def _orthogonal(case: Case, label: Case | None) -> Planes:
    shape, spacing = case.image.shape[1:], case.spacing
    lengths = [edge * size for edge, size in zip(shape, spacing, strict=True)]
    images, outlines = [], []
    for axis in (2, 1, 0):
        across, up = (other for other in range(3) if other != axis)
        size = [max(THINNEST_PX, round(PLANE_EDGE_PX * lengths[side] / max(lengths))) for side in (up, across)]
        index = shape[axis] // 2
        if label is not None and label.image.any():
            index = int(np.count_nonzero(label.image[0], axis=(across, up)).argmax())
        images.append(shrink(_upright(case.image[0], index, axis), size))
        if label is None:
            outlines.append(np.zeros(size, np.uint8))
        else:
            outlines.append(_contour(_upright(label.image[0], index, axis), size))
    # One grey scale for all three planes.
    scaled = grey(np.concatenate([image.ravel() for image in images]))
    ends = np.cumsum([image.size for image in images])[:-1]
    parts = np.split(scaled, ends)
    return Planes(tuple(part.reshape(image.shape) for part, image in zip(parts, images, strict=True)), tuple(outlines))


def _upright(volume: Array, index: int, axis: int) -> Array:
    """One plane of a RAS+ volume: superior or anterior up, the patient's left or back on the right."""
    plane: Array = volume.take(index, axis)
    return plane.T[::-1, ::-1]


def _contour(label: Array, size: Sequence[int]) -> Array:
    """(size) uint8: pixels of a class at the border to another, on the grid of the picture."""
    rows, columns = (np.arange(edge) * length // edge for edge, length in zip(size, label.shape, strict=True))
    large = label[np.ix_(rows, columns)].astype(np.int64)
    padded = np.pad(large, 1, mode="edge")
    inner = (slice(1, -1), slice(1, -1))
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([neighbour != padded[inner] for neighbour in neighbours], axis=0)
    # Only pixels of the class itself: else the outline is two pixels wide.
    return np.where(border & (large > 0), (large - 1) % 254 + 1, 0).astype(np.uint8)
