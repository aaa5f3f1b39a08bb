"""Pictures of results for a person to judge: outlines of classes, or a map of heat, over the image that they are of.

A volume is shown in planes as radiologists look at them: anterior or superior up, the patient's right on the left of
the picture (sagittal: anterior on the left), in millimetres and not in voxels. Sources of the colours: Okabe and Ito
2008 (jfly.uni-koeln.de/color), told apart with any colour vision; inferno of Smith and van der Walt 2015
(bids.github.io/colormap), of even steps to the eye.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medray.imaging.geometry import to_ras
from medray.imaging.masks import narrow, voxels_of
from medray.imaging.sheet import Colour, arranged, picture_of, short, with_legend, with_scale
from medray.types import Array, Case

COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#F0E442")
"""Of classes 1, 2, ..., from the eighth on again; the bright ones first, since images are dark."""
HEAT = "000004 210c4a 57106d 89226a bb3755 e35932 f98d0a f9ca32 fcffa4"
"""Inferno in nine even steps."""
SHOWN = (0.5, 99.5)
"""Percentiles of the image that become black and white."""
SAMPLED = 1 << 18
"""Voxels that are enough for them."""
FILL, LINE_PX, HEAT_ALPHA = 0.28, 1.8, 0.8
PLANE_PX, SLICE_PX, FLAT_PX = 360, 240, (512, 1024)
"""The longest side of a panel: of up to three, of more slices, and the least and the most of a 2D image."""
SIDES = (("A", "S"), ("R", "S"), ("R", "A"))
"""What is on the left and on top of a sagittal, a coronal and an axial plane."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A plane of the turned volume, or the whole of a 2D image."""

    axis: int
    """Its normal: 0 sagittal, 1 coronal, 2 axial; -1 for a 2D image."""
    index: int
    size: tuple[int, int]
    """Rows and columns of its panel."""

    def of(self, volumes: Array) -> Array:
        """(N, row, column) of volumes (N, i, j, k), or the images (N, row, column) themselves."""
        if self.axis < 0:
            return volumes
        return np.moveaxis(volumes, self.axis + 1, 0)[self.index, :, ::-1, ::-1].swapaxes(1, 2)


def colour_of(value: int) -> Colour:
    """RGB of the class `value`, counted from 1."""
    red, green, blue = bytes.fromhex(COLOURS[(value - 1) % len(COLOURS)][1:])
    return red, green, blue


def heat_colours(values: Array) -> Array:
    """RGB (..., 3) from 0 to 255 of `values` from 0 to 1."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in HEAT.split()], np.float32)
    steps = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, steps, anchors[:, channel]) for channel in range(3)], axis=-1)


def overlay(
    case: Case,
    mask: Array,
    names: Mapping[int, str] | None = None,
    *,
    slices: int = 0,
    window: tuple[float, float] | None = None,
) -> Array:
    """RGB uint8 (row, column, 3) of the image with outlines of the classes and a light fill, and a legend below.

    `mask` is (*S) of class values with 0 for background, or (R, *S) bool of regions, which are the classes 1 to R.
    A volume is shown in three planes through the mask's centre of mass, or in up to so many axial `slices` spread
    over it from below. `names` are those of the values (default: numbers); with millimetres the volume in mL is
    beside them. `window` (black, white) is by percentiles of the image where it is not given. Raises ValueError for
    another shape.
    """
    regions = mask.ndim > case.spatial_dims
    parts = _checked(case, mask if regions else narrow(mask)[None])
    counts = voxels_of(parts)
    turned, marked = to_ras(case), to_ras(replace(case, image=parts)).image
    window = window or grey_window(case.image)
    panels = []
    for cut in cuts(turned, marked[0] != 0 if len(marked) == 1 else np.asarray(marked.any(axis=0)), slices):
        panel, plane = canvas(turned, cut, window), cut.of(marked)
        for value in counts:
            inside = plane[value - 1] if regions else plane[0] == value
            if inside.any():
                _outline(panel, resized(inside, cut.size), colour_of(value))
        panels.append(picture_of(panel, *_sides(turned, cut)))
    labels = {value: (names or {}).get(value, str(value)) for value in counts}
    if case.spatial_dims == 3 and case.unit == "mm":
        voxel_ml = case.voxel_size / 1000
        labels = {value: f"{label}  {short(counts[value] * voxel_ml)} mL" for value, label in labels.items()}
    return with_legend(arranged(panels), [(colour_of(value), label) for value, label in labels.items()])


def heat_overlay(
    case: Case,
    heat: Array,
    *,
    slices: int = 0,
    window: tuple[float, float] | None = None,
    limit: float | None = None,
) -> Array:
    """RGB uint8 (row, column, 3) of the image under `heat` (*S): the hotter, the brighter and the less transparent.

    `limit` is the heat of the brightest colour (default: the most there is); what is not above 0 is not drawn. A
    volume is shown as in `overlay`, through the centre of what is at least half as hot. Raises ValueError for another
    shape and for heat that is not finite.
    """
    parts = _checked(case, np.asarray(heat)[None])
    if not np.isfinite(parts).all():
        raise ValueError("heat holds values that are not finite")
    top = limit if limit is not None else float(parts.max())
    turned, hot = to_ras(case), to_ras(replace(case, image=parts)).image
    window = window or grey_window(case.image)
    panels = []
    for cut in cuts(turned, np.asarray(hot[0] >= max(top / 2, np.finfo(np.float32).tiny)), slices):
        panel = canvas(turned, cut, window)
        share = np.clip(resized(cut.of(hot)[0], cut.size) / (top if top > 0 else 1), 0, 1)
        panel += HEAT_ALPHA * share[..., None] * (heat_colours(share) - panel)
        panels.append(picture_of(panel, *_sides(turned, cut)))
    return with_scale(arranged(panels), heat_colours(np.linspace(0, 1, 256)), max(top, 0.0))


def _checked(case: Case, parts: Array) -> Array:
    if parts.shape[1:] != case.image.shape[1:]:
        raise ValueError(f"the image is {case.image.shape[1:]}, what is to be drawn on it {parts.shape[1:]}")
    return parts


def cuts(case: Case, inside: Array, slices: int) -> Iterator[Cut]:
    """The planes to show of a case in RAS order, by where `inside` (*S) is."""
    shape, spacing = inside.shape, case.spacing
    extent = [length * edge for length, edge in zip(shape, spacing, strict=True)]
    if case.spatial_dims == 2:
        side = max(extent) / min(spacing)
        side = min(max(side, FLAT_PX[0]), FLAT_PX[1])
        yield Cut(-1, 0, _size(extent, side / max(extent)))
        return
    across = np.add.reduce(inside, axis=2, dtype=np.int32)
    counts = [across.sum(axis=1), across.sum(axis=0), inside.sum(axis=(0, 1))]
    if slices:
        found = np.flatnonzero(counts[2])
        low, high = (found[0], found[-1] + 1) if found.size else (0, shape[2])
        count = min(slices, high - low)
        size = _size((extent[1], extent[0]), (PLANE_PX if count <= 3 else SLICE_PX) / max(extent[:2]))
        for number in range(count):
            yield Cut(2, int(low + (high - low) * (number + 0.5) / count), size)
        return
    for axis in (2, 1, 0):
        weights = counts[axis] if counts[axis].any() else np.ones(shape[axis])
        index = round(float(np.average(np.arange(shape[axis]), weights=weights)))
        wide, high = (extent[other] for other in range(3) if other != axis)
        yield Cut(axis, index, _size((high, wide), PLANE_PX / max(extent)))


def _size(extent: Sequence[float], scale: float) -> tuple[int, int]:
    rows, columns = (max(1, round(length * scale)) for length in extent)
    return rows, columns


def canvas(case: Case, cut: Cut, window: tuple[float, float]) -> Array:
    """The plane as (row, column, 3) float32 from 0 to 255, in the size of its panel."""
    plane = cut.of(case.image)
    if len(plane) == 3 and plane.dtype == np.uint8:
        return np.stack([resized(channel, cut.size) for channel in plane], axis=-1).clip(0, 255)
    grey = (resized(plane[0], cut.size) - window[0]) * (255 / max(window[1] - window[0], 1e-12))
    return np.repeat(grey.clip(0, 255)[..., None], 3, axis=2)


def grey_window(image: Array) -> tuple[float, float]:
    """What becomes black and what white, by a sample of the first channel of an image (C, *S)."""
    first = image[0]
    every = math.ceil((first.size / SAMPLED) ** (1 / first.ndim))
    low, high = np.percentile(first[(slice(None, None, every),) * first.ndim], SHOWN)
    return float(low), float(high)


def resized(plane: Array, size: tuple[int, int]) -> Array:
    """(row, column) float32 in another size: smooth where it grows, averaged where it shrinks."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))


def _sides(case: Case, cut: Cut) -> tuple[str, str]:
    """The letters of what is on the left and on top; empty where the image does not say where it is."""
    return SIDES[cut.axis] if cut.axis >= 0 and case.unit == "mm" else ("", "")


def _outline(panel: Array, inside: Array, colour: Colour) -> None:
    """Draw what is above 1/2 in `inside` on the panel: a line of even width along its edge, and a light fill."""
    # The distance to the edge in pixels, to first order; it makes the line smooth.
    slope = np.hypot(*np.gradient(inside)) if min(inside.shape) > 1 else np.zeros_like(inside)
    distance = (inside - 0.5) / np.maximum(slope, 1e-3)
    line = np.clip(LINE_PX / 2 + 0.5 - abs(distance), 0, 1)
    alpha = np.maximum(line, FILL * np.clip(distance + 0.5, 0, 1))
    panel += alpha[..., None] * (np.array(colour, np.float32) - panel)
