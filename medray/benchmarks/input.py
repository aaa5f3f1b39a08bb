"""medray's input pipeline against MONAI's CacheDataset and PersistentDataset, with equal random changes, in 2D and 3D.

Both sides begin with preprocessed cases (in memory, or in files that the page cache holds) and end with float batches
ready for a step. 2D: whole images of 64x64, batch 64. 3D: patches of 64^3 out of volumes of 128x128x96 with their label
maps, batch 2, a third of the patches on a class. MONAI has no workers or one per core, whichever is faster; its best
settings and those of most tutorials are in monai_input.py. medray reads in the training's own process. Resampled label
maps take the nearest voxel in MONAI, and in medray the class with the largest share of the voxel, which is more work.
Command: uv run jobs/benchmark.py input [--quick] [--only 2d 3d] [--patch EDGE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from medray.benchmarks import report
from medray.benchmarks.monai_input import (
    AUGMENT,
    AUGMENT_3D,
    WAYS,
    DataLoader,
    Way,
    flat_loader,
    metadata,
    patch_loader,
    rate,
)
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Sheet, speeds
from medray.config import load
from medray.datasets import phantom
from medray.pipeline.loader import look_ahead, train_batches
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import to_network
from medray.training.world import World

BATCH, BATCH_3D = 64, 2
GOALS = {"2d": 8.0, "3d": 1.3}
"""What medray wants to reach on a CPU."""


def ours(learner: Learner) -> float:
    """Samples per second over one epoch."""
    started, count = time.perf_counter(), 0
    batches = train_batches(learner.feed, learner.rows["train"], learner.sampling, 0, learner.world.share)
    for batch in look_ahead(batches, pin=False):
        count += len(to_network(learner, batch).image)
    return count / (time.perf_counter() - started)


def images(folder: Path, quick: bool) -> Learner:
    """The phantom's slices."""
    cases = 160 if quick else 1600
    settings = [f"dataset.cases={cases}", "split.test=0", "split.val=0.2", f"train.batch_size={BATCH}", AUGMENT]
    experiment = load("phantom", settings)
    return Learner(experiment, prepare(experiment, folder), World())


def volumes(folder: Path, quick: bool, patch: int) -> Learner:
    """The phantom's volumes, to be segmented in patches; the network is none that would be trained."""
    edge, cases = (32, 10) if quick else (2 * patch, 24)
    window = 16 if quick else patch
    drawn = phantom.scan(phantom.Config(kind="volume3d", cases=cases, size=edge))
    source = drawn.refs[0].source
    assert isinstance(source, Path)  # noqa: S101
    settings = [
        f"dataset={{name: decathlon, path: {source.parents[1]}}}",
        "preprocess={intensity: {method: range, low: -1000, high: 1000}}",
        "task={name: segmentation}",
        "network={name: unet, channels: [4, 8], residual_units: 0}",
        f"window={{size: [{window}, {window}, {window}]}}",
        "split={val: 0.2, test: 0}",
        f"train={{batch_size: {BATCH_3D}, steps_per_epoch: {4 if quick else cases // BATCH_3D}}}",
        AUGMENT_3D,
    ]
    experiment = load("phantom", settings)
    return Learner(experiment, prepare(experiment, folder), World())


def against(sheet: Sheet, title: str, learner: Learner, make: Callable[[Way], DataLoader], pairs: int) -> None:
    """Each way of MONAI's, without workers or with one per core, whichever is faster by itself."""
    for way in WAYS:
        with metadata(not way.best):
            found: dict[int, tuple[float, DataLoader]] = {}
            for workers in (0, os.cpu_count() or 1):
                loader = make(replace(way, workers=workers))
                rate(loader)  # fills the cache, starts the workers
                found[workers] = rate(loader), loader
            best = max(found, key=lambda workers: found[workers][0])
            said = " and ".join(f"{speed:.4g} with {workers}" for workers, (speed, _) in found.items())
            loader = found[best][1]
            found.clear()  # the other one ends its workers
            ratio = compare(partial(ours, learner), partial(rate, loader), pairs)
        sheet.add(speeds(f"{title}, against {way}", "samples/s", ratio, f"{best} workers; alone {said}"))


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """2D, then 3D."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "2d" in cfg.only:
            flat = images(folder / "store", cfg.quick)
            make = partial(flat_loader, flat, folder / "flat", batch=BATCH)
            against(sheet, f"2D images of {flat.window[-1]}x{flat.window[-1]}", flat, make, cfg.pairs)
        if "3d" in cfg.only:
            deep = volumes(folder / "store", cfg.quick, cfg.patch)
            make = partial(patch_loader, deep, folder / "patches", batch=BATCH_3D)
            against(sheet, f"3D patches of {deep.window[-1]}^3", deep, make, cfg.pairs)


def options(parser: argparse.ArgumentParser) -> None:
    """Which, and how large."""
    parser.add_argument("--only", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--patch", type=int, default=64, help="edge of 3D patches, of volumes of twice that")


if __name__ == "__main__":
    report.run("input", __doc__ or "", measure, sys.argv[1:], options)
