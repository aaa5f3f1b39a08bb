"""How good an image is, in a few numbers of the image alone: the one measure of check, input contract and answers.

noise      robust deviation of the noise: median |N| / (0.6745 * 6), N the image under Immerkaer's operator, the second
           difference along both axes (Immerkaer 1996, 10.1006/cviu.1996.0060), over the range
sharpness  root mean square spatial frequency in radians per voxel: sqrt(mean |gradient|^2 / variance) after a binomial
           filter [1 2 1] / 4, which leaves 1 / 21 of the gradient of white noise. Weighing a spectrum with a Gaussian
           can only lower it: it falls with blur
contrast   the range p95 - p5 over maximum - minimum
clipping   share of voxels that are exactly the minimum or the maximum
coverage   share of voxels that are not padding: voxels of the minimum that hang together with the border

Range, contrast and clipping are of what is not padding. No number changes with shift and (positive) scale of the
intensities. Several channels are measured by their mean, and of large images a part that is spread evenly.
"""

from __future__ import annotations

import math

import numpy as np

from medray.types import Array, Case

QUALITIES = ("noise", "sharpness", "contrast", "clipping", "coverage")
SAMPLE_VOXELS = 1 << 14
"""About so many voxels, on a regular grid, tell range, contrast, clipping and coverage."""
PLANES = 5
"""Slices of a volume that tell noise and sharpness, across its longest voxel edge."""
WHOLE_EDGE, BLOCKS, BLOCK_EDGE = 128, 4, 32
"""Longer edges of a slice are seen in so many blocks of that edge."""
LEAST_EDGE = 5
"""Shorter edges have neither a noise nor a sharpness: both are 0."""
PADDED_SHARE = 0.01
IMMERKAER_NORM, MAD_TO_SIGMA = 6.0, 0.6745


def measure(case: Case) -> dict[str, float]:
    """QUALITIES, and the field of view of each axis as `extent_mm_0`, ... where the image has a unit.

    A constant image has 0 everywhere.
    """
    found = dict.fromkeys(QUALITIES, 0.0)
    sample = _sample(case.image)
    low, high = float(sample.min()), float(sample.max())
    if low < high:
        padding = _padding(sample == low)
        kept = sample[~padding]
        p05, p95 = np.percentile(kept, [5, 95]).tolist()
        span = p95 - p05 or high - low
        found["contrast"] = (p95 - p05) / (high - low)
        found["clipping"] = float(np.count_nonzero((kept == low) | (kept == high)) / kept.size)
        found["coverage"] = kept.size / sample.size
        blocks = _blocks(case)
        if min(blocks.shape[1:]) >= LEAST_EDGE:
            inside = blocks != low if found["coverage"] < 1 - PADDED_SHARE else None
            # By a power of 2, exactly: squares and sums of the largest and smallest numbers stay finite.
            exponent = -math.frexp(high - low)[1]
            blocks = np.ldexp(blocks, exponent)
            found["noise"] = _noise(blocks, inside) / math.ldexp(span, exponent)
            found["sharpness"] = _sharpness(blocks, inside)
    if case.unit == "mm":
        edges = zip(case.image.shape[1:], case.spacing, strict=True)
        found |= {f"extent_mm_{axis}": length * edge for axis, (length, edge) in enumerate(edges)}
    return found


def levels(image: Array) -> tuple[float, float, float]:
    """Percentiles 1, 50 and 99 of an image (C, *S)."""
    p01, p50, p99 = np.percentile(_sample(image), [1, 50, 99])
    return float(p01), float(p50), float(p99)


def _grey(image: Array) -> Array:
    """(*S) the mean of the channels, in float32 where that holds every value."""
    dtype = np.result_type(image.dtype, np.float32)
    return image[0].astype(dtype) if len(image) == 1 else np.asarray(image.mean(0, dtype=dtype))


def _sample(image: Array) -> Array:
    """Every n-th voxel along each axis."""
    size, axes = math.prod(image.shape[1:]), image.ndim - 1
    step = max(1, math.ceil((size / SAMPLE_VOXELS) ** (1 / axes)))
    return _grey(image[:, *[slice(None, None, step)] * axes])


def _padding(lowest: Array) -> Array:
    """The part of a mask that hangs together with the border."""
    from scipy.ndimage import label

    parts, count = label(lowest)
    touching = np.zeros(count + 1, bool)
    for axis in range(parts.ndim):
        for face in (0, -1):
            touching[parts.take(face, axis).ravel()] = True
    touching[0] = False
    return np.asarray(touching[parts])


def _blocks(case: Case) -> Array:
    """(P, h, w) slices of the image, or blocks of them, at full resolution."""
    image = case.image[:, None]
    if case.spatial_dims == 3:
        across = max(range(3), key=lambda axis: (round(case.spacing[axis], 3), axis))
        image = np.moveaxis(case.image, across + 1, 1)
    channels, planes, *edges = image.shape
    rows = sorted({planes * (2 * plane + 1) // (2 * PLANES) for plane in range(PLANES)})
    places = [_places(edge) for edge in edges]
    found = _grey(image[np.ix_(np.arange(channels), np.array(rows), *[place.ravel() for place in places])])
    (down, height), (right, width) = (place.shape for place in places)
    tiled = found.reshape(len(rows), down, height, right, width)
    return tiled.transpose(0, 1, 3, 2, 4).reshape(-1, height, width)


def _places(length: int) -> Array:
    """(blocks, edge) indices along an axis."""
    if length <= WHOLE_EDGE:
        return np.arange(length)[None]
    starts = np.linspace(0, length - BLOCK_EDGE, BLOCKS).astype(np.int64)
    return np.asarray(starts[:, None] + np.arange(BLOCK_EDGE))


def _noise(blocks: Array, inside: Array | None) -> float:
    """Deviation of the noise, in intensities."""
    second = blocks[:, :-2] - 2 * blocks[:, 1:-1] + blocks[:, 2:]
    found = np.abs(second[:, :, :-2] - 2 * second[:, :, 1:-1] + second[:, :, 2:])
    values = found if inside is None else found[inside[:, 1:-1, 1:-1]]
    return float(np.median(values)) / (MAD_TO_SIGMA * IMMERKAER_NORM) if values.size else 0.0


def _sharpness(blocks: Array, inside: Array | None) -> float:
    """Root mean square spatial frequency, radians per voxel."""
    smooth = (blocks[:, :-2] + 2 * blocks[:, 1:-1] + blocks[:, 2:]) / 4
    smooth = (smooth[:, :, :-2] + 2 * smooth[:, :, 1:-1] + smooth[:, :, 2:]) / 4
    down, right = np.diff(smooth, axis=1), np.diff(smooth, axis=2)
    if inside is not None:
        whole = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]
        whole = whole[:, :, :-2] & whole[:, :, 1:-1] & whole[:, :, 2:]
        down, right = down[whole[:, :-1] & whole[:, 1:]], right[whole[:, :, :-1] & whole[:, :, 1:]]
        smooth = smooth[whole]
    if not (down.size and right.size):
        return 0.0
    energy, variance = _power(down) + _power(right), float(smooth.var(dtype=np.float64))
    return math.sqrt(energy / variance) if variance else 0.0


def _power(values: Array) -> float:
    """The mean square."""
    flat = values.ravel()
    return float(np.dot(flat, flat)) / flat.size
