"""The only road from a Case to a network's input: training, evaluation and serving all take it.

Order: slice, channels, denoise, orientation, crop, intensity, then spacing and size in one resampling. Intensities come
before resampling, as in nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z): statistics, the box of the foreground
and 'not 0' are facts of voxels that were measured, and neither interpolation nor padding may change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from medray.imaging.geometry import Grid, crop_foreground, fitted, grid_of, onto, spaced, take_slice, to_ras
from medray.sections.data import DenoiseSection, IntensitySection, PreprocessSection
from medray.types import Array, Case, InputError

Numbers = TypeVar("Numbers")

CLIPPED_SHARE = 0.01
"""More voxels than this outside of [low, high] are worth a warning: the range is probably another modality's."""
COUNTED_AT_ONCE = 1 << 20
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601 weights of red, green and blue, those of JPEG and of Pillow's 'L'."""


def preprocess(case: Case, cfg: PreprocessSection) -> Case:
    """`case` on the network's grid: image (C, *S) C-contiguous, and the affine of that grid.

    Intensity 'range' returns values in [low, high], for integer images as uint8, uint16 or int16 (resampling rounds
    them: at most half a level), and `normalise` does the rest on the device. Every other method returns final
    float32. Padding is the background: what the raw image's minimum became.

    Raises InputError: wrong_rank (size or spacing_mm for another number of axes), wrong_channels,
    missing_geometry (spacing_mm, but the file has no mm). Warns: clipped ('range', more than 1 % outside).
    """
    if cfg.slice is not None:
        turned = case if cfg.orientation is None else to_ras(case)
        case = take_slice(turned, cfg.slice.axis, cfg.slice.position, cfg.slice.neighbours)
    _check_axes(case, cfg)
    colours = case.image.shape[0]
    if cfg.channels != "keep" and colours not in (1, 3):
        raise InputError("wrong_channels", f"channels '{cfg.channels}' takes 1 or 3 channels, the image has {colours}")
    if cfg.channels == "gray" and colours == 3:
        case = replace(case, image=_luminance(case.image))
    if cfg.denoise is not None:
        case = replace(case, image=_denoised(case.image, cfg.denoise))
    if cfg.orientation is not None:
        case = to_ras(case)
    background = case.image.min(keepdims=True)
    if cfg.crop_foreground:
        case = crop_foreground(case)
    if _is_clipped(case.image, cfg.intensity):
        case = replace(case, warnings=(*case.warnings, "clipped"))
    finish = _finisher(case.image, cfg.intensity)
    case = replace(case, image=finish(case.image))
    grid = _target_grid(case, cfg)
    if grid is not None:
        # The crop may have cut off all background: its value goes through the same map as the image.
        case = onto(case, grid, order=1, fill=float(finish(background).item()))
    # Three equal channels are made last: everything before is done once instead of three times.
    image = np.repeat(case.image, 3, axis=0) if cfg.channels == "rgb" and colours == 1 else case.image
    return replace(case, image=np.ascontiguousarray(image))


def scale_offset(cfg: PreprocessSection) -> tuple[float, float]:
    """(scale, offset) such that image * scale + offset is what the network sees; (1, 0) for all but 'range'."""
    if cfg.intensity.method != "range":
        return 1.0, 0.0
    low, high = cfg.intensity.bounds
    scale = 2.0 / (high - low)
    return scale, -1.0 - low * scale


def normalise(image: Numbers, cfg: PreprocessSection) -> Numbers:
    """A preprocessed image, already floating (a numpy array or a torch tensor of any shape), as the network sees it.

    'range' maps [low, high] to [-1, 1]; the other methods were finished by `preprocess` and pass.
    """
    scale, offset = scale_offset(cfg)
    if (scale, offset) == (1.0, 0.0):
        return image
    seen: Numbers = image * scale + offset  # type: ignore[operator, assignment]
    return seen


def _check_axes(case: Case, cfg: PreprocessSection) -> None:
    for name, setting in (("size", cfg.size), ("spacing_mm", cfg.spacing_mm)):
        if setting is not None and len(setting) != case.spatial_dims:
            fact = f"the image has {case.spatial_dims} axes, preprocess.{name} has {len(setting)}"
            raise InputError("wrong_rank", fact, f"give images of {len(setting)} axes or another {name}")
    if cfg.spacing_mm is not None and case.unit != "mm":
        raise InputError(
            "missing_geometry", "preprocess.spacing_mm is set, but the file does not say its spacing in mm"
        )


def _target_grid(case: Case, cfg: PreprocessSection) -> Grid | None:
    grid = grid_of(case)
    if cfg.spacing_mm is not None:
        grid = spaced(grid, cfg.spacing_mm)
    if cfg.size is not None:
        grid = fitted(grid, cfg.size, cfg.fit)
    return None if cfg.spacing_mm is None and cfg.size is None else grid


def _luminance(image: Array) -> Array:
    grey = np.tensordot(LUMA, image.astype(np.float32), axes=1)[None]
    return np.rint(grey).astype(image.dtype) if image.dtype.kind in "iu" else grey


def _denoised(image: Array, cfg: DenoiseSection) -> Array:
    from scipy import ndimage

    if cfg.method == "median":
        edge = int(cfg.size_px)
        if edge != cfg.size_px or edge % 2 == 0:
            raise ValueError(f"preprocess.denoise.size_px of a median must be an odd whole number, not {cfg.size_px:g}")
        return np.asarray(ndimage.median_filter(image, (1, *[edge] * (image.ndim - 1)), mode="nearest"))
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (0, *[cfg.size_px] * (image.ndim - 1)), mode="nearest")
    return np.rint(smooth).astype(image.dtype) if image.dtype.kind in "iu" else np.asarray(smooth)


def _finisher(image: Array, cfg: IntensitySection) -> Callable[[Array], Array]:
    """The map from raw values to final ones (to the range alone, for 'range'), with the statistics of `image`."""
    low, high = cfg.bounds
    if cfg.method == "range":
        return lambda values: _in_range(values, low, high)
    if cfg.method in ("window", "percentile"):
        if cfg.method == "percentile":
            low, high = _percentiles(image, (low, high))
        return lambda values: _mapped(values.astype(np.float32), low, high)
    # Over the whole image, not per channel: the colours of a picture are one measurement.
    nonzero = cfg.method == "zscore_nonzero"
    measured = image[image != 0] if nonzero else image
    mean = float(measured.mean(dtype=np.float64)) if measured.size else 0.0
    deviation = float(measured.std(dtype=np.float64)) if measured.size else 0.0
    return lambda values: _standardised(values, mean, deviation, nonzero)


def _standardised(raw: Array, mean: float, deviation: float, nonzero: bool) -> Array:
    """Mean 0, deviation 1; an image without contrast becomes 0, and so does what was 0 and not measured."""
    values = raw.astype(np.float32)
    if not np.float32(deviation) > 0:
        return np.zeros_like(values)
    values -= np.float32(mean)
    values /= np.float32(deviation)
    if nonzero:
        values[raw == 0] = 0
    return values


def _percentiles(image: Array, percents: tuple[float, float]) -> tuple[float, float]:
    """np.percentile of the whole image; for integers of 8 or 16 bits by counting, about eight times as fast."""
    if image.dtype.kind not in "iu" or image.dtype.itemsize > 2:
        # Between integers numpy interpolates in their own type, where a difference can overflow.
        values = image.astype(np.float64) if image.dtype.kind in "iu" else image
        low, high = np.percentile(values, percents).tolist()
        return low, high
    bins = 1 << (8 * image.dtype.itemsize)
    flat = image.ravel().view(f"u{image.dtype.itemsize}")
    counts = np.zeros(bins, np.int64)
    # bincount widens its input to 64 bits: in parts, it does not take eight times the image.
    for begin in range(0, flat.size, COUNTED_AT_ONCE):
        counts += np.bincount(flat[begin : begin + COUNTED_AT_ONCE], minlength=bins)
    least = np.iinfo(image.dtype).min
    below = np.cumsum(np.roll(counts, least))
    place = np.asarray(percents) / 100 * (flat.size - 1)
    first = np.floor(place).astype(np.int64)
    a, b = (np.searchsorted(below, np.minimum(rank, flat.size - 1), "right") + least for rank in (first, first + 1))
    low, high = (a + (b - a) * (place - first)).tolist()
    return low, high


def _mapped(values: Array, low: float, high: float) -> Array:
    """[low, high] to [-1, 1], clipped; an image without contrast becomes 0."""
    if not high > low:
        return np.zeros_like(values)
    np.clip(values, low, high, out=values)
    values -= np.float32((low + high) / 2)
    values *= np.float32(2 / (high - low))
    return values


def _is_clipped(image: Array, cfg: IntensitySection) -> bool:
    """Whether 'range' cuts off so much that it was probably meant for other images."""
    low, high = cfg.bounds
    if cfg.method != "range" or (low <= image.min() and image.max() <= high):
        return False
    return bool(np.count_nonzero((image < low) | (image > high)) > CLIPPED_SHARE * image.size)


def _in_range(image: Array, low: float, high: float) -> Array:
    """Values in [low, high] for `normalise`; integers in the smallest of uint8, uint16, int16 that holds that range.

    The dtype follows from the range and not from the image, so that the integer cases of one data set agree.
    """
    least, most = math.ceil(low), math.floor(high)
    if image.dtype.kind in "iu" and least <= most:
        for kind in (np.uint8, np.uint16, np.int16):
            if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max:
                if image.min() < least or image.max() > most:
                    image = np.clip(image.astype(np.result_type(image.dtype, kind), copy=False), least, most)
                return image.astype(kind, copy=False)
    return np.clip(image.astype(np.float32), low, high)
