"""From the store of cases to batches of patches: which voxels a dense network is trained and judged on.

A patch lies where (seed, epoch, case) says, so worker count, batch and resume do not change it. A share of the
patches is put on a voxel of a class that the case holds, each class as likely as the others; the rest lies anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medray.pipeline.casestore import CaseStore
from medray.pipeline.draws import Floats, Key, Stream, uniform
from medray.types import IGNORED, Array, Batch

Window = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Patching:
    """What a patch is."""

    size: Window
    """(*W), as many axes as the network's grid."""
    foreground: float = 1 / 3
    """Share of the patches that are put on a class other than the first (Isensee 2021, 10.1038/s41592-020-01008-z)."""
    slice_axis: int = 2
    """The axis of volumes that a window of two axes lies across."""
    neighbours: int = 0
    """Slices on each side that become further channels (2.5D)."""


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The training and evaluation data of a dense task: patches of cases, and whole cases."""

    store: CaseStore
    patching: Patching
    targets: torch.Tensor
    """(N, K) float, 1 where the class occurs in the case."""
    weights: torch.Tensor
    """(N,) float, the weight of each case in the loss."""

    @property
    def spatial_dims(self) -> int:
        """Axes of the network's grid, 2 or 3."""
        return len(self.patching.size)

    def drawn(self, rows: Array, index: Array, seed: int, epoch: int) -> Batch:
        """One patch of each case in `rows`; `index` is the row plus N for each time it was drawn before."""
        key = Key(seed, epoch, np.asarray(index, np.int64))
        numbers = uniform(key, Stream.PATCH, 3 + self.store.spatial_dims)
        pairs = [self._patch(row, draw) for row, draw in zip(rows.tolist(), numbers, strict=True)]
        image = torch.from_numpy(np.stack([image for image, _ in pairs]))
        label = torch.from_numpy(np.stack([label for _, label in pairs]))[:, None]
        return Batch(image, label, self.weights[torch.from_numpy(rows)], torch.from_numpy(np.ascontiguousarray(index)))

    def whole(self, rows: Array) -> Batch:
        """The case of `rows`, a single one, whole: image (1, C, *S) and label (1, 1, *S)."""
        (row,) = rows.tolist()
        image, label = np.array(self.store.image(row)), np.array(self.store.label(row))
        index = torch.tensor([row])
        return Batch(torch.from_numpy(image)[None], torch.from_numpy(label)[None, None], self.weights[index], index)

    @property
    def eval_cases(self) -> int:
        """Most cases that one batch of `whole` holds: they differ in shape."""
        return 1

    def _patch(self, row: int, draw: Floats) -> tuple[Array, Array]:
        """Image (C, *W) and label (*W) of one patch."""
        shape = self.store.shapes[row]
        window = self._box(shape)
        start = self._start(row, draw, shape, window)
        label = cut(self.store.label(row)[None], start, window, IGNORED)[0]
        image, least = self.store.image(row), self.store.least[row]
        flat = len(self.patching.size) < self.store.spatial_dims
        if not flat:
            return cut(image, start, window, least), label
        axis, n = self.patching.slice_axis, self.patching.neighbours
        slices = [np.clip(start[axis] + step, 0, shape[axis] - 1) for step in range(-n, n + 1)]
        parts = [cut(image, _moved(start, axis, int(at)), window, least) for at in slices]
        # Channel by channel, each with its neighbours in order, as inference/window.py reads a case.
        seen = np.stack([part.squeeze(axis + 1) for part in parts], axis=1)
        return seen.reshape(-1, *self.patching.size), label.squeeze(axis)

    def _box(self, shape: Array) -> Window:
        """The window with as many axes as the case: one voxel across a slice."""
        size = list(self.patching.size)
        if len(size) < len(shape):
            size.insert(self.patching.slice_axis, 1)
        return tuple(size)

    def _start(self, row: int, draw: Floats, shape: Array, window: Window) -> list[int]:
        """First voxel of the patch along each axis; before 0 where the case is smaller than the window."""
        spare = np.asarray(shape) - np.asarray(window)
        low, high = np.minimum(spare, 0), np.maximum(spare, 0)
        place = self._place(row, draw) if draw[0] < self.patching.foreground else None
        if place is not None:
            # Anywhere that has the voxel in the middle half of the patch, as far as the case reaches.
            shift = (draw[3:] - 0.5) * np.asarray(window) / 2
            middle = (np.asarray(window) - 1) / 2
            start = np.rint(np.asarray(np.unravel_index(place, tuple(shape))) - middle + shift)
            start = np.clip(start, low, high)
        else:
            start = np.minimum(np.floor(low + draw[3:] * (high - low + 1)), high)
        return [int(first) for first in start]

    def _place(self, row: int, draw: Floats) -> int | None:
        """A voxel of a class other than the first, None where the case holds none."""
        there = np.flatnonzero(self.store.counts[row, 1:]) + 1
        if not len(there):
            return None
        places = self.store.places(row)[there[int(draw[1] * len(there))]]
        return int(places[int(draw[2] * len(places))])


def cut(image: Array, start: list[int], size: Window, fill: float) -> Array:
    """(C, *size) of `image` (C, *S) from `start` on; what lies outside is `fill`."""
    inside, place = [], []
    for first, edge, length in zip(start, size, image.shape[1:], strict=True):
        begin, end = max(0, first), min(length, first + edge)
        inside.append(slice(begin, end))
        place.append(slice(begin - first, end - first))
    part = image[(slice(None), *inside)]
    if part.shape[1:] == size:
        return np.ascontiguousarray(part)
    result = np.full((len(image), *size), fill, image.dtype)
    result[(slice(None), *place)] = part
    return result


def _moved(start: list[int], axis: int, to: int) -> list[int]:
    return [to if position == axis else first for position, first in enumerate(start)]
