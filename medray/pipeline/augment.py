"""Augmentation: random, training only, on whole batches, on the batch's own device.

Flips are exact; every other motion of a case is one affine map and one linear resampling, beyond the border of
which the edge voxels go on. A label map moves with its image: each voxel takes the class with the largest share of it.
Then intensities change, in the order gamma, brightness, contrast, noise, blur, cutout. What happens to a case depends
on (seed, epoch, case) alone (draws.py). Means and ranges of 'the image' are over all its channels and voxels.
B batch, C channel, S the spatial axes, R the cases that a step changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medray.pipeline import affine
from medray.pipeline.draws import Floats, Key, Keys, Rows, Stream, keys, pick
from medray.sections.augment import AugmentSection, Mixup

Step = tuple[Rows, Callable[[Tensor], Tensor]]

CLASSES_AT_ONCE = 8
"""Of label maps with more classes so many are resampled at a time."""
WIDEST = 1 << 12
"""Values of a label map that lie further apart are sorted, not counted."""


def augment(image: Tensor, cfg: AugmentSection, seed: int, epoch: int, index: np.ndarray) -> Tensor:
    """A batch (B, C, *S) float, augmented; `index` (B,) is the row of each case in the store.

    The input is never written to, and is itself the answer where nothing was drawn. A case for which nothing was
    drawn comes through bit for bit. Half precision is computed in float32 and rounded once.
    """
    return augment_pair(image, None, cfg, seed, epoch, index)[0]


def augment_pair(
    image: Tensor, label: Tensor | None, cfg: AugmentSection, seed: int, epoch: int, index: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    """A batch as `augment` makes it, and its label maps (B, 1, *S) of whole numbers, moved as the images are."""
    if image.ndim not in (4, 5) or len(index) != len(image):
        raise ValueError(f"augment takes (B, C, *S) and B indices, got {tuple(image.shape)} and {len(index)}")
    key = Key(seed, epoch, np.asarray(index, np.int64))
    size = tuple(image.shape[2:])
    motion = affine.draw(cfg, key, size)
    steps = [step for step in _intensity_steps(cfg, key, size) if len(step[0])]
    still = not len(motion.rows) and not any(len(rows) for rows in motion.flips.values())
    if still and not steps:
        return image, label
    work = image.to(torch.promote_types(image.dtype, torch.float32), copy=True)
    moved = None if label is None else label.clone()
    for axis, rows in motion.flips.items():
        mirror = partial(torch.flip, dims=(axis + 2,))
        work = _changed(work, rows, mirror)
        moved = None if moved is None else _changed(moved, rows, mirror)
    if len(motion.rows):
        grid = _sampling_grid(affine.theta(motion, size), work)
        if moved is None:
            work = _changed(work, motion.rows, partial(_resample, grid=grid))
        else:
            at = torch.from_numpy(motion.rows).to(work.device)
            read, classes = _resample_pair(work.index_select(0, at), moved.index_select(0, at), grid)
            work, moved = work.index_copy_(0, at, read), moved.index_copy_(0, at, classes)
    for rows, change in steps:
        work = _changed(work, rows, change)
    return work.to(image.dtype), moved


def _changed(work: Tensor, rows: Rows, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`work` (B, ...) with `change` made to its `rows`, in place where these are not all."""
    if len(rows) == 0:
        return work
    if len(rows) == len(work):
        return change(work)
    at = torch.from_numpy(rows).to(work.device)
    return work.index_copy_(0, at, change(work.index_select(0, at)))


def mixup_weights(cfg: Mixup, seed: int, epoch: int, index: np.ndarray) -> Floats:
    """(B,) the share of each case itself in its blend with a partner: in [0.5, 1], and 1 where none was drawn.

    The larger of x and 1 - x for x ~ Beta(alpha, alpha) (Zhang 2018, arXiv:1710.09412): the partner is drawn at
    random, so which of the two is called the first does not matter. The Beta has a closed form in two uniforms:
    x = (1 + t / sqrt(2 alpha + t^2)) / 2 for t ~ Student(2 alpha), by the polar method of Bailey 1994
    (10.2307/2153537).
    """
    share = np.ones(len(index))
    rows, u = pick(Key(seed, epoch, np.asarray(index, np.int64)), Stream.MIXUP, cfg.p, 2)
    tail = (1 - u[:, 0]) ** (1 / cfg.alpha)
    square = np.cos(2 * np.pi * u[:, 1]) ** 2 * (1 - tail)
    share[rows] = (1 + np.sqrt(square / (square + tail))) / 2
    return share


def _intensity_steps(cfg: AugmentSection, key: Key, size: tuple[int, ...]) -> Iterator[Step]:
    """The changes of intensities in their order, each with the cases (R,) that it was drawn for."""
    rows, u = pick(key, Stream.GAMMA, cfg.gamma.p * (cfg.gamma.strength > 0), 1)
    yield rows, partial(_gamma, exponent=np.exp((2 * u[:, 0] - 1) * cfg.gamma.strength))
    rows, u = pick(key, Stream.BRIGHTNESS, cfg.brightness.p * (cfg.brightness.shift > 0), 1)
    yield rows, partial(_brightness, shift=(2 * u[:, 0] - 1) * cfg.brightness.shift)
    rows, u = pick(key, Stream.CONTRAST, cfg.contrast.p * (cfg.contrast.fraction > 0), 1)
    yield rows, partial(_contrast, factor=1 + (2 * u[:, 0] - 1) * cfg.contrast.fraction)
    rows, u = pick(key, Stream.NOISE, cfg.noise.p * (cfg.noise.std > 0), 1)
    if len(rows):
        yield rows, partial(_noise, std=u[:, 0] * cfg.noise.std, seeds=keys(key, Stream.NOISE_FIELD)[rows])
    rows, u = pick(key, Stream.BLUR, cfg.blur.p * (cfg.blur.sigma_px > 0), 1)
    yield rows, partial(_blur, sigma=u[:, 0] * cfg.blur.sigma_px, radius=int(np.ceil(3 * cfg.blur.sigma_px)))
    rows, u = pick(key, Stream.CUTOUT, cfg.cutout.p * (cfg.cutout.fraction > 0), len(size))
    yield rows, partial(_cutout, place=u, fraction=cfg.cutout.fraction)


def _sampling_grid(theta: Floats, image: Tensor) -> Tensor:
    """(R, *S, d) where each voxel of the moved cases is read, by `theta` (R, d, d + 1), as grid_sample counts."""
    d = image.ndim - 2
    size = image.shape[2:]
    maps = torch.from_numpy(theta).to(image.dtype).to(image.device)
    grid = image.new_empty((len(theta), *size, d))
    for component in range(d):
        terms = []
        for column in range(d):
            length = size[d - 1 - column]
            centres = (2 * torch.arange(length, device=image.device, dtype=image.dtype) + 1) / length - 1
            shape = [len(theta)] + [1] * d
            shape[d - column] = length
            terms.append((maps[:, component, column, None] * centres).view(shape))
        terms[0] = terms[0] + _per_case(maps[:, component, d], terms[0])
        partial_sum = terms[0] if d == 2 else terms[0] + terms[1]
        torch.add(partial_sum, terms[-1], out=grid[..., component])
    return grid


def _resample(image: Tensor, grid: Tensor) -> Tensor:
    """(R, C, *S) read at the places of `grid`, linearly."""
    return torch.nn.functional.grid_sample(
        image.contiguous(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _resample_pair(image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C, *S) read linearly, and (R, 1, *S) whole numbers: the class with the largest share by the same weights.

    Where to read is what costs most, so image and shares are read together; the last class has what the others leave.
    """
    values = _values(label)
    if len(values) == 1:
        return _resample(image, grid), label
    first, *others = torch.split(values[:-1], CLASSES_AT_ONCE)
    both = _resample(torch.cat([image, _one_hot(label, first, grid.dtype)], 1), grid)
    image, shares = both.tensor_split([image.shape[1]], 1)
    best, moved = _largest(shares, first)
    rest = 1 - shares.sum(1, keepdim=True)
    for part in others:
        shares = _resample(_one_hot(label, part, grid.dtype), grid)
        share, chosen = _largest(shares, part)
        moved = torch.where(share > best, chosen, moved)
        best = torch.maximum(best, share)
        rest -= shares.sum(1, keepdim=True)
    return image, torch.where(rest > best, values[-1], moved)


def _one_hot(label: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, K, *S) whether each voxel of (R, 1, *S) has each of K values."""
    return (label == values.view(-1, *[1] * (label.ndim - 2))).to(dtype)


def _largest(shares: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1, *S) the largest of K shares, and its value, which broadcasts where there is one alone."""
    if len(values) == 1:
        return shares, values
    share, winner = shares.max(1, keepdim=True)
    return share, values[winner]


def _values(label: Tensor) -> Tensor:
    """Values in order, all those of a label map among them, and its largest the last.

    Of a few that lie close together all are taken, found or not: one that is not there has no share of any voxel. More
    are counted, which costs less than sorting, unless they lie far apart.
    """
    low, high = (int(end) for end in torch.aminmax(label))
    if high - low < CLASSES_AT_ONCE:
        return torch.arange(low, high + 1, device=label.device).to(label.dtype)
    if high - low >= WIDEST:
        found: Tensor = torch.unique(label)
    else:
        counts = torch.bincount((label.flatten() - low).to(torch.int64), minlength=1)
        found = torch.nonzero(counts)[:, 0].add_(low).to(label.dtype)
    return found


def _gamma(image: Tensor, exponent: Floats) -> Tensor:
    low, high = torch.aminmax(image.flatten(1), dim=1)
    low, span = _per_case(low, image), _per_case(high - low, image)
    unit = (image - low) / torch.where(span > 0, span, torch.ones_like(span))
    return unit.pow_(_like(exponent, image)).mul_(span).add_(low)


def _brightness(image: Tensor, shift: Floats) -> Tensor:
    return image + _like(shift, image)


def _contrast(image: Tensor, factor: Floats) -> Tensor:
    return torch.lerp(_mean(image), image, _like(factor, image))


def _noise(image: Tensor, std: Floats, seeds: Keys) -> Tensor:
    field = torch.empty_like(image, memory_format=torch.contiguous_format)
    generator = torch.Generator(image.device)
    for one, seed in zip(field, seeds.astype(np.int64).tolist(), strict=True):
        one.normal_(generator=generator.manual_seed(seed))
    return torch.addcmul(image, field, _like(std, image))


def _blur(image: Tensor, sigma: Floats, radius: int) -> Tensor:
    """A separable Gaussian cut at `radius`, which is 3 of the largest sigma so that a batch does not change it."""
    distance = np.arange(radius + 1) / np.maximum(sigma, 1e-3)[:, None]
    weight = np.exp(-0.5 * distance**2)
    weight /= 2 * weight.sum(1, keepdims=True) - weight[:, :1]
    for axis in range(2, image.ndim):
        length = image.shape[axis]
        reach = torch.arange(-radius, length + radius, device=image.device).clamp_(0, length - 1)
        padded = image.index_select(axis, reach)
        image = padded.narrow(axis, radius, length) * _like(weight[:, 0], image)
        for step in range(1, radius + 1):
            pair = padded.narrow(axis, radius - step, length) + padded.narrow(axis, radius + step, length)
            image.addcmul_(pair, _like(weight[:, step], image))
    return image


def _cutout(image: Tensor, place: Floats, fraction: float) -> Tensor:
    inside = torch.ones((), dtype=torch.bool, device=image.device)
    for axis, length in enumerate(image.shape[2:]):
        edge = max(1, round(fraction * length))
        first = np.floor(place[:, axis] * (length - edge + 1))[:, None]
        ruler = np.arange(length)
        shape = [len(image)] + [1] * (image.ndim - 1)
        shape[axis + 2] = length
        along = torch.from_numpy((ruler >= first) & (ruler < first + edge))
        inside = inside & along.to(image.device).view(shape)
    return torch.where(inside, _mean(image), image)


def _mean(image: Tensor) -> Tensor:
    """(R, 1, ...) the mean of each image."""
    return image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)


def _like(values: Floats, image: Tensor) -> Tensor:
    """(R,) numbers as (R, 1, ...) on the image's device."""
    return _per_case(torch.from_numpy(np.ascontiguousarray(values)).to(image.dtype).to(image.device), image)


def _per_case(values: Tensor, image: Tensor) -> Tensor:
    return values.view(-1, *[1] * (image.ndim - 1))
