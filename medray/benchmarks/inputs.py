"""Samples per second of medray's input pipeline against MONAI's CacheDataset and DataLoader, equal augmentations.

Both begin with preprocessed 64x64 cases in memory or page cache and end with float batches ready for a step.
Command: uv run python -m medray.benchmarks.inputs
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.data import CacheDataset, DataLoader

from medray.benchmarks.loop import whole_images
from medray.benchmarks.ratio import compare, show
from medray.config import load
from medray.pipeline.loader import look_ahead, train_batches
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import to_network
from medray.training.world import World

BATCH = 64
CHANCE, DEGREES, ZOOM, MOVE, GAMMA, NOISE = 0.5, 15.0, 0.1, 0.1, 0.3, 0.1
AUGMENT = (
    f"augment={{flip: {{p: {CHANCE}, axes: [1]}}, rotate: {{p: {CHANCE}, degrees: {DEGREES}}}, "
    f"scale: {{p: {CHANCE}, fraction: {ZOOM}}}, shift: {{p: {CHANCE}, fraction: {MOVE}}}, "
    f"gamma: {{p: {CHANCE}, strength: {GAMMA}}}, noise: {{p: {CHANCE}, std: {NOISE}}}}}"
)


def ours(learner: Learner) -> float:
    """Samples per second over one epoch."""
    started, count = time.perf_counter(), 0
    batches = train_batches(learner.feed, learner.rows["train"], learner.sampling, 0, learner.world.share)
    for batch in look_ahead(batches, pin=False):
        count += len(to_network(learner, batch).image)
    return count / (time.perf_counter() - started)


def monai_loader(images: np.ndarray, workers: int) -> Any:
    """CacheDataset with everything cached, MONAI's own transforms, workers that stay."""
    edge = images.shape[-1]
    steps = transforms.Compose(
        [
            transforms.RandFlip(prob=CHANCE, spatial_axis=1),
            transforms.RandAffine(
                prob=CHANCE,
                rotate_range=np.deg2rad(DEGREES),
                scale_range=ZOOM,
                translate_range=MOVE * edge,
                padding_mode="border",
            ),
            transforms.RandAdjustContrast(prob=CHANCE, gamma=(float(np.exp(-GAMMA)), float(np.exp(GAMMA)))),
            transforms.RandGaussianNoise(prob=CHANCE, std=NOISE),
            transforms.ToTensor(track_meta=False),
        ]
    )
    cached = CacheDataset(list(images), steps, cache_rate=1.0, progress=False)
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(cached, batch_size=BATCH, shuffle=True, drop_last=True, **options)


def theirs(loader: Any) -> float:
    """Samples per second over one epoch."""
    started, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Compare with MONAI in one process and with a worker per CPU, and print both ratios."""
    settings = ["dataset.cases=1600", "split.test=0", "split.val=0.2", f"train.batch_size={BATCH}", AUGMENT]
    with tempfile.TemporaryDirectory() as root:
        experiment = load("phantom", settings)
        learner = Learner(experiment, prepare(experiment, Path(root)), World())
        rows = learner.rows["train"]
        images = (whole_images(learner)[torch.from_numpy(rows)].float() / 127.5 - 1).numpy()
        for workers in (0, os.cpu_count() or 1):
            loader = monai_loader(images, workers)
            found = compare(lambda: ours(learner), lambda loader=loader: theirs(loader))  # type: ignore[misc]
            show(f"input/64x64 against MONAI with {workers} workers", "samples/s", found)


if __name__ == "__main__":
    main()
