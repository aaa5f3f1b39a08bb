"""medray's training loop against a bare PyTorch loop, MONAI's SupervisedTrainer and Lightning's Trainer.

ResNet-18 and the default's small CNN on 64x64 phantoms, batch 64. All sides have the same cases, network, AdamW,
learning rates, channels-last memory and precision (bf16 where the CPU has it), and as many threads.
Loop alone: batches come out of tensors in memory, without augmentation. The bare loop checks and logs nothing;
Lightning runs `barebones`, its fastest setting, and takes whole batches.
End to end: an epoch of reading, equal random changes and steps. MONAI and Lightning read a CacheDataset that holds all
cases, by MONAI's transforms without metadata, in workers that stay: none, or one per core, whichever is faster here.
MONAI's trainer makes no metrics and does not decollate; its `amp` is for CUDA alone: its inferer computes in bf16.
Command: uv run jobs/benchmark.py loop [--quick] [--families resnet plain]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from medray.benchmarks import peers, report
from medray.benchmarks.loop_peers import LightningSide, MonaiSide, wait
from medray.benchmarks.monai_input import AUGMENT, DataLoader, Way, flat_loader, labels_of, metadata, rate
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Sheet, speeds
from medray.config import load
from medray.pipeline.loader import Samples, epoch_order
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import _train_epoch
from medray.training.optim import set_rates
from medray.training.world import World

BATCH = 64
STEPS = {"resnet": 12, "plain": 48}
SETTINGS = ("split.test=0", "split.val=0.2", f"train.batch_size={BATCH}")
CASES, FEW = "dataset.cases=960", "dataset.cases=160"
STILL = "augment.flip.p=0"
FAMILIES = {"resnet": ("network.name=resnet",), "plain": ()}


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learner(family: str, root: Path, *settings: str) -> Learner:
    """ResNet-18 with its usual stem, or the default's small CNN, on 64x64 phantoms."""
    experiment = load("phantom", [*FAMILIES[family], *SETTINGS, *settings])
    return Learner(experiment, prepare(experiment, root), World(device=device()))


def ours(one: Learner, steps: int) -> float:
    """Steps per second of medray's training loop."""
    done, started = 0, time.perf_counter()
    while done < steps:
        one.step = one.epoch * one.steps_per_epoch  # the epoch again, however far it came
        for _ in _train_epoch(one):
            done += 1
            if done == steps:
                break
    wait(one)
    return steps / (time.perf_counter() - started)


def batches(one: Learner, images: torch.Tensor, labels: torch.Tensor, steps: int) -> Iterator[list[torch.Tensor]]:
    """Images and labels of so many steps, out of memory, in the loader's order."""
    order = torch.from_numpy(epoch_order(one.rows["train"], one.sampling, 0))
    for step in range(steps):
        rows = order[(step * BATCH) % (len(order) - BATCH) :][:BATCH]
        yield [one.ordered(images[rows].to(one.world.device)), labels[rows].to(one.world.device)]


def bare(one: Learner, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Steps per second of the loop that one would write by hand: tensors in memory, nothing checked or logged."""
    network, optimizer = one.network, one.optimizer
    network.train()
    started = time.perf_counter()
    for step, (image, label) in enumerate(batches(one, images, labels, steps)):
        set_rates(optimizer, one.schedule.factor(step))
        with one.autocast():
            loss = functional.cross_entropy(network(image).float(), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait(one)
    return steps / (time.perf_counter() - started)


class Batches:
    """`batches`, as often as one goes through them: what Lightning takes for a loader."""

    def __init__(self, one: Learner, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
        self._parts = one, images, labels, steps

    def __len__(self) -> int:
        return self._parts[-1]

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        return batches(*self._parts)


def whole_images(learner: Learner) -> torch.Tensor:
    """(N, C, *S) the store of a task that is answered per case."""
    assert isinstance(learner.feed, Samples)  # noqa: S101
    return learner.feed.images


def alone(sheet: Sheet, family: str, cases: str, steps: int, pairs: int) -> None:
    """The loop without its input: against bare PyTorch, and Lightning."""
    with tempfile.TemporaryDirectory() as root:
        one, other, third = (learner(family, Path(root), cases, STILL) for _ in range(3))
        images, labels = whole_images(other).float() / 127.5 - 1, labels_of(other)
        found = compare(partial(ours, one, steps), partial(bare, other, images, labels, steps), pairs)
        sheet.add(speeds(f"{family}, loop alone, against a bare loop", "steps/s", found))
        if peers.missing("lightning"):
            sheet.add(peers.absent("lightning", "loop"))
            return
        theirs = LightningSide(third, Batches(third, images, labels, steps))
        found = compare(partial(ours, one, steps), lambda: steps / theirs.seconds(), pairs)
        sheet.add(speeds(f"{family}, loop alone, against Lightning", "steps/s", found))


def end_to_end(sheet: Sheet, family: str, cases: str, pairs: int) -> None:
    """A whole epoch of input, random changes and steps: against MONAI, and Lightning with MONAI's input."""
    absent = peers.missing("ignite", "lightning")
    if "ignite" in absent:
        sheet.add(peers.absent("ignite", "loop"))
    with tempfile.TemporaryDirectory() as root, metadata(False):
        one, other, third = (learner(family, Path(root), cases, AUGMENT) for _ in range(3))
        steps = one.steps_per_epoch
        loader = fastest(other, Path(root) / "files")
        note = f"{loader.num_workers} workers read for it"
        if "ignite" not in absent:
            monai = MonaiSide(other, loader)
            found = compare(lambda: BATCH * ours(one, steps), lambda: BATCH * steps / monai.seconds(), pairs)
            sheet.add(speeds(f"{family}, end to end, against MONAI SupervisedTrainer", "images/s", found, note))
        if "lightning" not in absent:
            theirs = LightningSide(third, loader)
            found = compare(lambda: BATCH * ours(one, steps), lambda: BATCH * steps / theirs.seconds(), pairs)
            sheet.add(speeds(f"{family}, end to end, against Lightning on MONAI's input", "images/s", found, note))


def fastest(one: Learner, folder: Path) -> DataLoader:
    """MONAI's loader without workers, or with one per core, whichever reads faster by itself."""
    loaders = [flat_loader(one, folder, Way(workers=workers), BATCH) for workers in (0, os.cpu_count() or 1)]
    for loader in loaders:
        rate(loader)  # fills the cache, starts the workers
    return max(loaders, key=rate)


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """Each family: the loop alone, then end to end."""
    for family in cfg.families:
        cases, steps = (FEW, 2) if cfg.quick else (CASES, STEPS[family])
        alone(sheet, family, cases, steps, cfg.pairs)
        end_to_end(sheet, family, cases, cfg.pairs)


def options(parser: argparse.ArgumentParser) -> None:
    """Which networks."""
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))


if __name__ == "__main__":
    report.run("loop", __doc__ or "", measure, sys.argv[1:], options)
