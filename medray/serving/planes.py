"""Single planes of an answer as PNG layers of one size: the image, what was found in it, and what spoke for it.

Planes lie as in imaging/overlay.py: radiological, in millimetres. Axes are 0 sagittal, 1 coronal, 2 axial, counted
from left, posterior and inferior; a 2D image is a plane of its own.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medray.imaging.geometry import to_ras
from medray.imaging.overlay import SIDES, Cut, canvas, colour_of, cuts, grey_window, heat_colours, resized
from medray.imaging.writer import png_bytes
from medray.serving.kept import Kept
from medray.types import Array, Case

NAMES = ("sagittal", "coronal", "axial")
LAYERS = ("image", "mask", "heat")
LONGEST_PX, LONGEST_FLAT_PX = 512, 1024
"""Of a plane of a volume, and of a 2D image."""
REMEMBERED = 512
"""Answers of which window and middle are known: some numbers of each."""


@dataclass(frozen=True, slots=True)
class _View:
    """What takes time to find out of an answer's image."""

    window: tuple[float, float]
    """What becomes black and what white."""
    starts: tuple[int, ...]
    """The index of each axis through the middle of what was found."""


_views: OrderedDict[str, _View] = OrderedDict()
_lock = threading.Lock()


def layer_png(kept: Kept, axis: int, index: int, layer: str) -> bytes:
    """One layer of one plane as PNG; of a 2D image the axis and index say nothing.

    The image is grey (8 bits between its percentiles) or RGB; mask and heat are RGBA with nothing where there is
    nothing: a mask is opaque, heat is as opaque as it is hot.

    Raises:
        ValueError: there is no such layer, axis or plane.
    """
    if layer not in layers(kept):
        raise ValueError(f"the answer has no layer '{layer}'; it has {', '.join(layers(kept))}")
    cut = _cut(kept.raw, axis, index)
    if layer == "image":
        plane = np.rint(canvas(to_ras(kept.raw), cut, _view(kept).window)).astype(np.uint8)
        coloured = len(kept.raw.image) == 3 and kept.raw.image.dtype == np.uint8
        return png_bytes(plane if coloured else plane[..., 0])
    if layer == "heat":
        return _rgba_png(_heat(cut.of(_turned(kept, kept.heat))[0], cut.size))
    return _rgba_png(_mask(cut.of(_turned(kept, kept.answer.mask)), cut.size))


def layers(kept: Kept) -> tuple[str, ...]:
    """The layers that the answer has."""
    there = (True, kept.answer.mask is not None, kept.heat is not None)
    return tuple(name for name, found in zip(LAYERS, there, strict=True) if found)


def slices_info(kept: Kept) -> dict[str, Any]:
    """What a page must know to ask for planes, as plain JSON.

    axes: of each the name, count of planes, where to start, size in pixels [rows, columns], and the letters of what
    is on the left and on top; in them columns and rows run against the other two axes, in their order.
    """
    case = to_ras(kept.raw)
    starts = _view(kept).starts
    counts = case.image.shape[1:] if case.spatial_dims == 3 else (1,)
    axes = [
        {
            "name": NAMES[axis] if case.spatial_dims == 3 else "image",
            "count": count,
            "start": starts[axis],
            "size": list(_cut(kept.raw, axis, 0).size),
            "sides": list(SIDES[axis]) if case.spatial_dims == 3 and case.unit == "mm" else ["", ""],
        }
        for axis, count in enumerate(counts)
    ]
    return {"axes": axes, "layers": list(layers(kept)), "spacing": list(case.spacing), "unit": case.unit}


def _cut(raw: Case, axis: int, index: int) -> Cut:
    """The plane, and the size of its picture. Raises ValueError where there is none."""
    case = to_ras(raw)
    extent = [length * edge for length, edge in zip(case.image.shape[1:], case.spacing, strict=True)]
    if case.spatial_dims == 2:
        return Cut(-1, 0, _size(extent, min(case.spacing), LONGEST_FLAT_PX))
    if axis not in range(3):
        raise ValueError(f"axis is 0 (sagittal), 1 (coronal) or 2 (axial), not {axis}")
    count = case.image.shape[axis + 1]
    if index not in range(count):
        raise ValueError(f"index is from 0 to {count - 1} on the axis {axis}, not {index}")
    wide, high = (extent[other] for other in range(3) if other != axis)
    return Cut(axis, index, _size([high, wide], min(case.spacing), LONGEST_PX))


def _size(extent: list[float], edge: float, most: int) -> tuple[int, int]:
    """Rows and columns of square pixels as small as the shortest edge of a voxel, but not more than `most`."""
    pixel = max(edge, max(extent) / most)
    rows, columns = (max(1, round(length / pixel)) for length in extent)
    return rows, columns


def _turned(kept: Kept, voxels: Array | None) -> Array:
    """Voxels (*S) or (R, *S) of the answer in the order of RAS: (R, *S), a view."""
    parts = np.asarray(voxels)
    if parts.ndim == kept.raw.spatial_dims:
        parts = parts[None]
    return to_ras(replace(kept.raw, image=parts)).image


def _mask(parts: Array, size: tuple[int, int]) -> Array:
    """RGBA of class values (1, row, column), or of regions (R, row, column) bool of which the later lie on top."""
    values = parts[0].astype(np.uint16)
    if parts.dtype == np.bool_:
        for value, inside in enumerate(parts, start=1):
            values[inside] = value
    rows, columns = (
        (np.arange(length) * 2 + 1) * old // (2 * length) for length, old in zip(size, values.shape, strict=True)
    )
    colours = np.zeros((int(values.max()) + 1, 4), np.uint8)
    for value in range(1, len(colours)):
        colours[value] = (*colour_of(value), 255)
    return np.asarray(colours[values[rows[:, None], columns]])


def _heat(plane: Array, size: tuple[int, int]) -> Array:
    steps = np.rint(np.clip(resized(plane, size), 0, 1) * 255).astype(np.uint8)
    colours = np.rint(heat_colours(np.linspace(0, 1, 256))).astype(np.uint8)
    return np.concatenate([colours[steps], steps[..., None]], axis=-1)


def _rgba_png(picture: Array) -> bytes:
    """(row, column, 4) uint8 as PNG (ISO 15948): unfiltered, which is best for flat colours."""
    rows, columns = picture.shape[:2]
    lines = np.zeros((rows, 1 + columns * 4), np.uint8)
    lines[:, 1:] = picture.reshape(rows, -1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _view(kept: Kept) -> _View:
    with _lock:
        known = _views.get(kept.request_id)
        if known is not None:
            _views.move_to_end(kept.request_id)
            return known
    found = _View(grey_window(kept.raw.image), _starts(kept))
    with _lock:
        _views[kept.request_id] = found
        while len(_views) > REMEMBERED:
            _views.popitem(last=False)
    return found


def _starts(kept: Kept) -> tuple[int, ...]:
    """The planes through the middle of the mask, or of what is half as hot as the hottest, or of the image."""
    if kept.raw.spatial_dims == 2:
        return (0,)
    if kept.answer.mask is not None:
        inside = (_turned(kept, kept.answer.mask) != 0).any(axis=0)
    elif kept.heat is not None and kept.heat.max() > 0:
        inside = _turned(kept, kept.heat)[0] >= kept.heat.max() / 2
    else:
        return tuple(length // 2 for length in to_ras(kept.raw).image.shape[1:])
    found = {cut.axis: cut.index for cut in cuts(to_ras(kept.raw), inside, 0)}
    return found[0], found[1], found[2]
