"""The input pipeline as MONAI's tutorials build it, at its best settings, with medray's random changes.

Files of one case each (.npy, float32, as the network sees it) are loaded by deterministic transforms, whose results
CacheDataset keeps in memory and PersistentDataset on the disk, then changed by random ones per sample; foreground
voxels are found once, workers stay. At its best metadata is off (`set_track_meta(False)`), cached samples are not
copied and grids are kept; as most tutorials have it, they are on, copied and made anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.benchmarks import peers
from medray.imaging.preprocess import normalise
from medray.pipeline.loader import Samples
from medray.pipeline.patches import Patches
from medray.training.learner import Learner

CHANCE, DEGREES, ZOOM, MOVE, GAMMA, NOISE = 0.5, 15.0, 0.1, 0.1, 0.3, 0.1
MOVED = 1 - (1 - CHANCE) ** 3
"""Share of the cases that are resampled: medray draws rotation, scale and shift each by itself, MONAI all at once."""
AXES = {2: (1,), 3: (0, 1, 2)}
"""Axes that are mirrored, by the number of axes."""
AUGMENT, AUGMENT_3D = (
    f"augment={{flip: {{p: {CHANCE}, axes: {list(axes)}}}, rotate: {{p: {CHANCE}, degrees: {DEGREES}}}, "
    f"scale: {{p: {CHANCE}, fraction: {ZOOM}}}, shift: {{p: {CHANCE}, fraction: {MOVE}}}, "
    f"gamma: {{p: {CHANCE}, strength: {GAMMA}}}, noise: {{p: {CHANCE}, std: {NOISE}}}}}"
    for axes in AXES.values()
)
DataLoader = Any
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """How MONAI reads."""

    dataset: str = "CacheDataset"
    """Or PersistentDataset."""
    best: bool = True
    """Its best settings, or those of most tutorials."""
    workers: int = 0

    def __str__(self) -> str:
        return f"MONAI {self.dataset}{'' if self.best else ' as in tutorials'}"


WAYS = (Way(), Way("PersistentDataset"), Way(best=False))


@contextmanager
def metadata(kept: bool) -> Iterator[None]:
    """Whether MONAI's transforms keep metadata of their tensors while the block runs."""
    meta = peers.load("monai.data.meta_obj")
    before = meta.get_track_meta()
    meta.set_track_meta(kept)
    try:
        yield
    finally:
        meta.set_track_meta(before)


def flat_loader(one: Learner, folder: Path, way: Way, batch: int) -> DataLoader:
    """Batches {image (B, C, *S), label (B,)} of a learner's training cases."""
    feed, labels = one.feed, labels_of(one)
    assert isinstance(feed, Samples)  # noqa: S101
    items = []
    for row in one.rows["train"].tolist():
        image = normalise(feed.images[row : row + 1].float(), one.experiment.preprocess)[0]
        items.append({"image": saved(folder / f"{row}.npy", image), "label": int(labels[row])})
    changes = _random_changes(("image",), tuple(feed.images.shape[2:]), way)
    return _loader([*_loading(("image",), way), *changes], items, way, batch, folder)


def patch_loader(one: Learner, folder: Path, way: Way, batch: int) -> DataLoader:
    """Batches {image (B, C, *W), label (B, 1, *W)} of patches, a third of them on a class, of a learner's cases."""
    feed = one.feed
    assert isinstance(feed, Patches)  # noqa: S101
    window, names, items = feed.patching.size, ("image", "label"), []
    for row in one.rows["train"].tolist():
        image = normalise(torch.from_numpy(np.array(feed.store.image(row)))[None].float(), one.experiment.preprocess)[0]
        label = torch.from_numpy(np.array(feed.store.label(row)))[None]
        files = {"image": image, "label": label}
        items.append({name: saved(folder / f"{row}-{name}.npy", tensor) for name, tensor in files.items()})
    transforms = peers.load("monai.transforms")
    steps = [
        *_loading(names, way),
        transforms.FgBgToIndicesd("label"),
        transforms.RandCropByPosNegLabeld(
            names,
            label_key="label",
            spatial_size=window,
            pos=1,
            neg=2,
            num_samples=1,
            fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
            allow_smaller=False,
        ),
        transforms.SelectItemsd(names),
        *_random_changes(names, window, way),
    ]
    return _loader(steps, items, way, batch, folder)


def _loading(names: Sequence[str], way: Way) -> list[Any]:
    transforms = peers.load("monai.transforms")
    return [transforms.Lambdad(names, np.load), transforms.ToTensord(names, track_meta=not way.best)]


def _random_changes(names: Sequence[str], size: Sequence[int], way: Way) -> list[Any]:
    """medray's, in MONAI's words: those of the grid for all names, those of intensities for the image."""
    transforms, dims = peers.load("monai.transforms"), len(size)
    return [
        *(transforms.RandFlipd(names, prob=CHANCE, spatial_axis=axis) for axis in AXES[dims]),
        transforms.RandAffined(
            names,
            prob=MOVED,
            rotate_range=[np.deg2rad(DEGREES)] * (1 if dims == 2 else 3),
            scale_range=[ZOOM] * dims,
            translate_range=[MOVE * edge for edge in size],
            mode=["bilinear", "nearest"][: len(names)],
            padding_mode="border",
            cache_grid=way.best,
            spatial_size=tuple(size),
        ),
        transforms.RandAdjustContrastd("image", prob=CHANCE, gamma=(float(np.exp(-GAMMA)), float(np.exp(GAMMA)))),
        transforms.RandGaussianNoised("image", prob=CHANCE, std=NOISE),
    ]


def _loader(steps: Sequence[Any], items: Sequence[Item], way: Way, batch: int, folder: Path) -> DataLoader:
    """What of `steps` is deterministic is cached: in memory, or below `folder`."""
    data, chain = peers.load("monai.data"), peers.load("monai.transforms").Compose(steps)
    if way.dataset == "CacheDataset":
        cached = data.CacheDataset(items, chain, cache_rate=1.0, progress=False, copy_cache=not way.best)
    else:
        cached = data.PersistentDataset(items, chain, cache_dir=folder / "persistent")
    options = {"num_workers": way.workers, "persistent_workers": way.workers > 0}
    return data.DataLoader(cached, batch_size=batch, shuffle=True, drop_last=True, **options)


def rate(loader: DataLoader) -> float:
    """Samples per second over one epoch."""
    started, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["image"])
    return count / (time.perf_counter() - started)


def labels_of(one: Learner) -> torch.Tensor:
    """(N,) the class of each case."""
    return one.feed.targets.argmax(1)


def saved(file: Path, tensor: torch.Tensor) -> str:
    """The file's name, with the tensor in it."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, tensor.numpy())
    return str(file)
