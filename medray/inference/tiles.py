"""Where the windows of a scan lie, how much each of their voxels counts, and the sums of their answers.

The positions are the product of positions along each axis: those of MONAI's `dense_patch_slices`, so that answers can
be compared. A window larger than the image stands out of it on both sides; what stands out is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor

Index = tuple[slice, ...]
Spot = tuple[int, bool]
"""Where a window begins along one axis (below 0 where it stands out of the image), and whether it is mirrored."""
SIGMA = 0.125
"""Of the Gaussian, as a share of the window (Isensee 2021, 10.1038/s41592-020-01008-z)."""
LEAST_WEIGHT = 1e-3
"""Lest the corners of a window count nothing, and vanish in float16 (MONAI's `compute_importance_map`)."""

CHUNK_VOXELS = 1 << 18
"""What is divided by its weights at once stays in the cache."""
CHUNK_PLANES = 16
"""At least: a cache line, should planes lie across the last axis."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One look through the window: the voxels of the image that it sees, (*S) slices each."""

    starts: tuple[int, ...]
    source: Index
    """Those voxels in the image."""
    inner: Index
    """The same voxels in the window."""
    seen: Index
    """The same voxels in the window as the network sees it, mirrored along `flips`."""
    flips: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The windows over one image."""

    shape: tuple[int, ...]
    """(*S) of the image."""
    window: tuple[int, ...]
    """(*W), as many axes."""
    axis: int
    """Windows come in rows: a row has one place along this axis, and the next row lies no lower."""
    tracks: tuple[tuple[Spot, ...], ...]
    """The places along each axis, in rising order."""

    @property
    def length(self) -> int:
        """Voxels of the image along the axis of rows."""
        return self.shape[self.axis]

    @property
    def height(self) -> int:
        """Voxels of the image along the axis of rows that one window can see."""
        return min(self.length, self.window[self.axis])

    @property
    def plane(self) -> int:
        """Voxels of the image at one place of the axis of rows."""
        return prod(self.shape) // self.length

    @property
    def count(self) -> int:
        """Windows."""
        return prod(map(len, self.tracks))

    @property
    def chunk(self) -> int:
        """Planes that are divided by their weights at once."""
        return max(CHUNK_VOXELS // self.plane, CHUNK_PLANES)

    def chunks(self, height: int) -> tuple[int, int]:
        """Most planes that are divided at once between two rows, and after the last, in a ring of that height."""
        bounds = [max(start, 0) for start, _ in self.tracks[self.axis]] + [self.length]
        most = [max((run[2] for run in _runs(*gap, height, self.chunk)), default=0) for gap in pairwise(bounds)]
        return max(most[:-1], default=0), most[-1]

    def tiles(self) -> Iterator[Tile]:
        """Every window, row by row."""
        for spots in sorted(product(*self.tracks), key=lambda spots: spots[self.axis][0]):
            yield self._tile(spots)

    def _tile(self, spots: Sequence[Spot]) -> Tile:
        """The window at one place of each axis."""
        source, inner, seen = [], [], []
        for (start, mirrored), size, length in zip(spots, self.window, self.shape, strict=True):
            low, high = max(start, 0), min(start + size, length)
            source.append(slice(low, high))
            inner.append(slice(low - start, high - start))
            seen.append(slice(size - (high - start), size - (low - start)) if mirrored else inner[-1])
        flips = tuple(axis for axis, (_, mirrored) in enumerate(spots) if mirrored)
        return Tile(tuple(start for start, _ in spots), tuple(source), tuple(inner), tuple(seen), flips)

    def row_weights(self, weights: Tensor) -> Tensor:
        """Sum of `weights` (*W) over the windows of one row: (*S), but the window's length along the axis of rows.

        Every row has the same, so all weights of the image are known from one row's.
        """
        shape = list(self.shape)
        shape[self.axis] = self.window[self.axis]
        total = torch.zeros(shape, dtype=torch.float32, device=weights.device)
        for spots in product(*(track[:1] if axis == self.axis else track for axis, track in enumerate(self.tracks))):
            tile = self._tile(spots)
            everything = slice(None)
            source = tuple(everything if axis == self.axis else part for axis, part in enumerate(tile.source))
            inner = tuple(everything if axis == self.axis else part for axis, part in enumerate(tile.inner))
            total[source].add_(weights[inner])
        return total

    def weights_between(self, row: Tensor, low: int, high: int) -> Tensor:
        """Sum of the weights of all windows over the planes [low, high) of the axis of rows, from `row_weights`."""
        shape = list(self.shape)
        shape[self.axis] = high - low
        total = torch.zeros(shape, dtype=row.dtype, device=row.device)
        for start, _ in self.tracks[self.axis]:
            first, last = max(low, start), min(high, start + self.window[self.axis])
            if first < last:
                part = row.narrow(self.axis, first - start, last - first)
                total.narrow(self.axis, first - low, last - first).add_(part)
        return total


def lay(
    shape: Sequence[int], window: Sequence[int], overlap: float, flips: Sequence[int] = (), axis: int | None = None
) -> Tiling:
    """Lay windows (*W) over an image (*S); rows along `axis`, by default where fewest voxels wait for the next row."""
    if axis is None:
        axis = max(range(len(shape)), key=lambda axis: shape[axis] / window[axis])
    tracks = tuple(
        _track(length, size, overlap, axis in flips)
        for axis, (length, size) in enumerate(zip(shape, window, strict=True))
    )
    return Tiling(tuple(shape), tuple(window), axis, tracks)


def _track(length: int, size: int, overlap: float, mirror: bool) -> tuple[Spot, ...]:
    """Places along one axis.

    Mirrored windows lie where those of the mirrored image lie: then a mirrored image has exactly the mirrored answer,
    though the last window is moved inwards to end with the image.
    """
    if length <= size:
        starts = [-((size - length) // 2)]
    else:
        step = max(int(size * (1 - overlap)), 1)
        starts = [min(index * step, length - size) for index in range(ceil((length - size) / step) + 1)]
    spots = [(start, False) for start in starts]
    if mirror:
        spots += [(length - size - start, True) for start in starts]
    return tuple(sorted(spots))


def window_weights(window: Sequence[int], blend: Literal["gaussian", "constant"], device: torch.device) -> Tensor:
    """(*W) float32, how much each voxel of a window counts."""
    total = torch.ones(tuple(window), dtype=torch.float32, device=device)
    if blend == "gaussian":
        for axis, size in enumerate(window):
            offsets = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
            curve = torch.exp(offsets**2 / (-2 * (SIGMA * size) ** 2))
            total.mul_(curve.reshape([-1 if other == axis else 1 for other in range(len(window))]))
        total.clamp_(min=LEAST_WEIGHT)
    return total


def _runs(start: int, stop: int, height: int, most: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Planes [start, stop) in a ring: (first, its place, how many), at most `most` at once."""
    while start < stop:
        at = start % height
        count = min(stop - start, height - at, most or height)
        yield start, at, count
        start += count


class Sums:
    """The weighted sums of the windows' answers, of all voxels or only of those that a later window may touch.

    In the latter case planes share a ring that is one window high: plane i lies at i modulo the height.
    """

    def __init__(self, tiling: Tiling, weights: Tensor, whole: bool) -> None:
        self.tiling = tiling
        self.height = tiling.length if whole else tiling.height
        self.weights = weights
        self.row = tiling.row_weights(weights)
        self.total = weights.new_empty(0)
        """(K, *S) when `open` was called, but the ring's height along the axis of rows."""
        self._blank = self.total
        self._done = 0

    def open(self, classes: int, background_class: int | None) -> None:
        """Take the memory for K classes; a window that is skipped is of `background_class`."""
        shape = list(self.tiling.shape)
        shape[self.tiling.axis] = self.height
        # No inference tensor: those who get it may change it in place.
        with torch.inference_mode(False):
            self.total = self.weights.new_zeros((classes, *shape))
        self._blank = self.weights.new_zeros((classes, *[1] * len(shape)))
        if background_class is not None:
            self._blank[background_class] = 1

    def add(self, tile: Tile, answer: Tensor | None) -> None:
        """Add the answer (K, *W) of one window; None: it was skipped."""
        if answer is None:
            answer = self._blank.expand(-1, *self.tiling.window)
        else:
            answer = answer.to(self.total.device, self.total.dtype)
            if tile.flips:
                answer = answer.flip([axis + 1 for axis in tile.flips])
        axis, source, inner = self.tiling.axis, list(tile.source), list(tile.inner)
        for low, at, count in _runs(source[axis].start, source[axis].stop, self.height):
            offset = low - tile.starts[axis]
            source[axis], inner[axis] = slice(at, at + count), slice(offset, offset + count)
            self.total[:, *source].addcmul_(answer[:, *inner], self.weights[*inner])

    def finish(self, stop: int) -> Iterator[tuple[Index, Tensor]]:
        """Where they lie in the image, and probabilities (K, ...), of the planes below `stop` that are left.

        What is yielded is memory of the ring: it is gone with the next step.
        """
        axis = self.tiling.axis
        index = [slice(None)] * len(self.tiling.shape)
        for low, at, count in _runs(self._done, stop, self.height, self.tiling.chunk):
            part = self.total.narrow(axis + 1, at, count)
            weights = self.tiling.weights_between(self.row, low, low + count)
            for row in part:  # all at once, float16 would take a copy of all classes
                row.div_(weights)
            del weights
            index[axis] = slice(low, low + count)
            yield tuple(index), part
            if self.height < self.tiling.length:
                part.zero_()
        self._done = max(self._done, stop)
