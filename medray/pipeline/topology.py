"""How deep a U-Net is, and its kernels and strides along each axis, from spacing and patch.

The rules of nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z, supplementary note 2), as its get_pool_and_conv_props
has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from medray.pipeline.recipe import SMALLEST_EDGE, START_VOXELS, THIN

Edges = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The shape of a U-Net, finest level first."""

    patch: Edges
    """(*S), divisible by what the network shrinks it by."""
    kernels: tuple[Edges, ...]
    """3 along axes that are as fine as the finest, 1 along coarser ones; 3 everywhere in the deepest level."""
    strides: tuple[Edges, ...]
    """2 along axes that are halved on the way into a level; the first is all 1."""

    @cached_property
    def factor(self) -> Edges:
        """What the network shrinks the patch by along each axis."""
        return tuple(math.prod(edges) for edges in zip(*self.strides, strict=True))

    @property
    def levels(self) -> int:
        """Levels of the network."""
        return len(self.strides)


def topology(spacing: Sequence[float], patch: Sequence[int]) -> Topology:
    """The U-Net for a patch of such voxels: an axis is halved while its edge stays at least SMALLEST_EDGE.

    Only axes are halved, and only they get kernels of 3, whose voxels have grown to within a factor of 2 of the
    finest ones: a coarse axis waits until the others have caught up. The patch is rounded up to what divides.
    """
    voxel, edges = list(spacing), [float(edge) for edge in patch]
    axes = range(len(edges))
    kernel = [1] * len(edges)
    strides: list[Edges] = [(1,) * len(edges)]
    kernels: list[Edges] = []
    while halved := _halved(voxel, edges):
        kernel = [3 if voxel[axis] < THIN * min(voxel) else kernel[axis] for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            voxel[axis] *= 2
            edges[axis] = math.ceil(edges[axis] / 2)
    if not kernels:
        # So small that nothing can be halved: a U-Net has a second level all the same.
        kernels.append((3,) * len(edges))
        strides.append((1,) * len(edges))
    kernels.append((3,) * len(edges))
    factors = [math.prod(steps) for steps in zip(*strides, strict=True)]
    whole = tuple(-(-edge // factor) * factor for edge, factor in zip(patch, factors, strict=True))
    return Topology(whole, tuple(kernels), tuple(strides))


def first_patch(spacing: Sequence[float], median: Sequence[int]) -> Edges:
    """A patch of START_VOXELS that is a cube in mm, cut to the median case."""
    density = [1 / edge for edge in spacing]
    scale = (START_VOXELS[len(spacing)] / math.prod(density)) ** (1 / len(spacing))
    return tuple(max(1, min(round(d * scale), edge)) for d, edge in zip(density, median, strict=True))


def smaller(spacing: Sequence[float], now: Topology, median: Sequence[int], least: int = 1) -> Topology | None:
    """The next smaller patch and its network: the axis that is largest beside the median case is shortened first.

    None where no axis can lose a voxel and stay at `least`.
    """
    order = sorted(range(len(median)), key=lambda axis: now.patch[axis] / median[axis], reverse=True)
    for axis in order:
        # A patch is rounded up to what divides: the first edge that makes it smaller skips no size.
        for edge in range(now.patch[axis] - 1, least - 1, -1):
            shape = topology(spacing, [*now.patch[:axis], edge, *now.patch[axis + 1 :]])
            if math.prod(shape.patch) < math.prod(now.patch):
                return shape
    return None


def _halved(voxel: Sequence[float], edges: Sequence[float]) -> list[int]:
    """The axes that are halved next; none where the network is deep enough."""
    long = [axis for axis, edge in enumerate(edges) if edge >= 2 * SMALLEST_EDGE]
    if not long:
        return []
    finest = min(voxel[axis] for axis in long)
    fine = [axis for axis in long if voxel[axis] < THIN * finest]
    return [] if len(fine) == 1 and edges[fine[0]] < 3 * SMALLEST_EDGE else fine
